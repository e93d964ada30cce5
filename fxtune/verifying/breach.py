"""The smallest failing example of a bound that was broken."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fxtune.verifying.certificate import Breach
from fxtune.verifying.comparing import Key, Measured
from fxtune.verifying.computing import compute
from fxtune.verifying.example import Example
from fxtune.verifying.pair import Pair
from fxtune.verifying.shrinking import smallest

Results = Sequence[tuple[Example, dict[Key, Measured]]]
"""Examples, and what was measured in each."""


def breach(pair: Pair, key: Key, results: Results, call: str) -> Breach:
    """The example that breaks a bound the most, made small.

    Where a root mean square over all examples is beyond the bound, that of one of them is: the bound is twice another
    plus a constant.

    Args:
        pair: the forms.
        key: the dtype and kind whose bound is broken.
        results: of all examples.
        call: the arguments of the call of `verify`, for the line that reproduces it.
    """
    dtype, kind = key

    def excess(one: Measured) -> float:
        number, bound = one.judged(kind, dtype)
        return number - bound if math.isfinite(number) else math.inf

    def failing(example: Example) -> Measured | None:
        measured = compute(pair, example, [dtype])[key]
        return None if measured.holds(kind, dtype) else measured

    first, measurements = max(results, key=lambda result: excess(result[1][key]))
    example, measured = smallest(first, measurements[key], pair.inputs.smaller, failing)
    error, bound = measured.judged(kind, dtype)
    name = str(dtype).removeprefix("torch.")
    return Breach(
        example=example,
        dtype=name,
        of=kind,
        tensor=measured.tensor,
        error=error,
        bound=bound,
        shapes={place: tuple(tensor.shape) for place, tensor in pair.inputs.draw(example).tensors().items()},
        reproduce=f"fxtune.verify({call}, examples=[{example.model_dump(exclude_defaults=True)}], dtypes=['{name}'])",
    )
