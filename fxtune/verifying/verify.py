"""`verify`: random examples through both forms."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

import fxtune
from fxtune.api import RulesLike
from fxtune.errors import FxtuneError, PlanError
from fxtune.names import resolve
from fxtune.rules import load
from fxtune.verifying.certificate import Agreement, Breach, Certificate
from fxtune.verifying.comparing import EXACT, KINDS, Measured, measure
from fxtune.verifying.example import Example
from fxtune.verifying.pair import Pair
from fxtune.verifying.progress import progress
from fxtune.verifying.shrinking import smallest

Key = tuple[torch.dtype, str]
"""A dtype, and outputs or gradients."""


def verify(
    model: nn.Module | str,
    rules: RulesLike | Sequence[RulesLike],
    *,
    examples: int | Sequence[Example | Mapping[str, Any]] = 20,
    seed: int = 0,
    example_inputs: Any = None,
    dtypes: Sequence[str] = ("float64", "float32", "bfloat16"),
    **settings: Any,
) -> Certificate:
    """Computes the original and the unbound form of rules with the same random weights and inputs, and compares.

    Every example draws every weight anew, of the model and of the tuners, non-zero ones for biases, norms and scales
    as well; then inputs, of every batch and length that the captured model takes. Outputs, and gradients of floating
    inputs and of all weights that train, are compared in evaluation mode. `fxtune.verifying.comparing` says what is
    allowed.

    Args:
        model: a model, or a name that the command line takes. It is not changed, and its weights don't matter: one
            that is given by name is built without them.
        rules: as for `fxtune.apply`.
        examples: how many; or the very ones, such as the `breach.example` of a certificate.
        seed: from which the examples' own seeds are drawn. The same seed gives the same certificate.
        example_inputs: as for `fxtune.apply`; inputs are drawn like these.
        dtypes: names of torch's floating dtypes, in which to compare.
        settings: more of what `fxtune.apply` takes: ``head=``, ``num_classes=``, settings of tuners.

    Returns:
        The certificate. `passed` tells whether every bound was kept; if not, `breach` is a small failing example.

    Raises:
        RuleError: a tuner has no original form where the rules put it.
        FxtuneError: the rules could not be applied.
    """
    chosen = _dtypes(dtypes)
    built = resolve(model, weights=False) if isinstance(model, str) else model
    pair = Pair(built, rules, example_inputs, settings)
    tuners = [line for outcome in pair.tuned.report().outcomes if outcome.sites for line in [_line(outcome)]]
    if not tuners:
        raise PlanError(
            "There is nothing to verify: the rules put no tuner into this model",
            found=str(pair.tuned.report()),
            fix="`fxtune inspect` shows where tuners can go",
        )
    drawn = _examples(pair, examples, seed)
    results: list[dict[Key, Measured]] = []
    for example in progress(drawn, "verifying"):
        results.append(_compare(pair, example, chosen))
        if any(not one.holds(kind, dtype) for (dtype, kind), one in results[-1].items() if dtype is EXACT):
            break  # one such example is enough
    together = {key: Measured.over([result[key] for result in results]) for key in results[0]}
    broken = next((key for key, one in together.items() if not one.holds(key[1], key[0])), None)
    names = tuple(rule_set.name for rule_set in load(rules))
    return Certificate(
        model=type(built).__name__,
        rules=names,
        tuners=tuple(tuners),
        examples=len(results),
        seed=seed,
        agreement=tuple(_agreement(key, one) for key, one in together.items()),
        versions=_versions(built),
        breach=None
        if broken is None
        else _breach(pair, broken, drawn[: len(results)], results, _call(model, rules, settings)),
    )


def _compare(pair: Pair, example: Example, dtypes: Sequence[torch.dtype]) -> dict[Key, Measured]:
    """One example, in float64 first; the others only if that holds or is not asked."""
    pair.load(example.seed)
    call = pair.inputs.draw(example)
    truth = pair.run("original", call, EXACT, example.seed)
    measured: dict[Key, Measured] = {}
    for dtype in dtypes:
        unbound = pair.run("unbound", call, dtype, example.seed)
        original = None if dtype is EXACT else pair.run("original", call, dtype, example.seed)
        for kind in KINDS:
            theirs = original.of(kind) if original else None
            measured[dtype, kind] = measure(kind, dtype, truth.of(kind), unbound.of(kind), theirs)
    return measured


def _breach(
    pair: Pair, key: Key, examples: Sequence[Example], results: Sequence[dict[Key, Measured]], call: str
) -> Breach:
    """The example that breaks this bound the most, made small. (Where a root mean square over all examples is beyond
    twice another, that of one of them is.)"""
    dtype, kind = key

    def excess(one: Measured) -> float:
        number, bound = one.judged(kind, dtype)
        return number - bound if number == number else float("inf")

    def failing(example: Example) -> Measured | None:
        measured = _compare(pair, example, [dtype])[key]
        return None if measured.holds(kind, dtype) else measured

    worst = max(range(len(examples)), key=lambda index: excess(results[index][key]))
    example, measured = smallest(examples[worst], results[worst][key], pair.inputs.smaller, failing)
    error, bound = measured.judged(kind, dtype)
    name = str(dtype).removeprefix("torch.")
    again = example.model_dump(exclude_defaults=True)
    return Breach(
        example=example,
        dtype=name,
        of=kind,
        tensor=measured.tensor,
        error=error,
        bound=bound,
        shapes={place: tuple(tensor.shape) for place, tensor in pair.inputs.draw(example).tensors().items()},
        reproduce=f"fxtune.verify({call}, examples=[{again}], dtypes=['{name}'])",
    )
