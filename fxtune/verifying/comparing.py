"""Errors of one form against another, or against the truth, and what is allowed.

float64
    The forms against each other: ``max|a - b| / max|b|`` of every output at most 1e-12, of every gradient at most
    1e-10. A gradient that is truly zero (of a bias of keys, which shifts all logits of a query alike) is a sum of terms
    as large as other gradients, which cancel: it may be off by 16 eps of the example's largest gradient. Depth needs no
    slack: a dozen blocks add to 1e-14.
Any other dtype
    Each form against the float64 truth from the same rounded weights and inputs. Errors are as above, but a gradient
    below a tenth of the largest is taken relative to that tenth, for sums that nearly cancel (of queries' and keys'
    weights) would drown all others. Their root mean square over all tensors of all examples may be twice that of the
    original form plus two eps. As both forms are as deep, depth drops out of the comparison. The eps are for roundings
    of which one form has a single one more, where the original form by luck has next to none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["outputs", "gradients"]
Key = tuple[torch.dtype, Kind]
"""In what and of what errors are measured."""

KINDS: tuple[Kind, ...] = ("outputs", "gradients")
EXACT = torch.float64
BOUNDS: dict[Kind, float] = {"outputs": 1e-12, "gradients": 1e-10}
_CANCELLED = 16 * torch.finfo(EXACT).eps / BOUNDS["gradients"]
_NEARLY_CANCELLED = 0.1
_FLOOR = 2


@dataclass(frozen=True)
class Measured:
    """How far a form is off.

    Attributes:
        unbound: root mean square of the errors of the unbound form (in float64: against the original form).
        original: that of the original form; 0 in float64, where it is the truth.
        largest: the largest error of the unbound form.
        tensor: where that is.
    """

    unbound: float
    original: float
    largest: float
    tensor: str

    @classmethod
    def over(cls, measured: Sequence[Measured]) -> Measured:
        """Of several examples together."""
        worst = max(measured, key=lambda one: one.largest)
        unbound, original = rms(one.unbound for one in measured), rms(one.original for one in measured)
        return cls(unbound, original, worst.largest, worst.tensor)

    def judged(self, kind: Kind, dtype: torch.dtype) -> tuple[float, float]:
        """The number that counts, and its bound."""
        if dtype is EXACT:
            return self.largest, BOUNDS[kind]
        return self.unbound, 2 * self.original + _FLOOR * torch.finfo(dtype).eps

    def holds(self, kind: Kind, dtype: torch.dtype) -> bool:
        """Whether it is within the bound. Infinite is not, whatever the original form is."""
        number, bound = self.judged(kind, dtype)
        return math.isfinite(number) and number <= bound


def measure(
    kind: Kind, dtype: torch.dtype, truth: Mapping[str, Tensor], unbound: Mapping[str, Tensor],
    original: Mapping[str, Tensor] | None = None,
) -> Measured:  # fmt: skip
    """Errors of one example; `truth` is the original form in float64."""
    share = 0.0 if kind == "outputs" else _CANCELLED if dtype is EXACT else _NEARLY_CANCELLED
    errors = _errors(unbound, truth, share)
    tensor = max(errors, key=lambda name: errors[name], default="")
    theirs = _errors(original, truth, share) if original is not None else {}
    return Measured(rms(errors.values()), rms(theirs.values()), errors.get(tensor, 0.0), tensor)


def rms(errors: Iterable[float]) -> float:
    """Root mean square; 0 of nothing."""
    squares = [error * error for error in errors]
    return math.sqrt(math.fsum(squares) / len(squares)) if squares else 0.0


def _errors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], share: float) -> dict[str, float]:
    """``max|a - b| / max|b|`` of each tensor; below `share` of the largest tensor, over that instead."""
    least = share * max(map(_largest, expected.values()), default=0.0)
    return {
        name: _error(found[name], expected[name], least) if name in found and name in expected else math.inf
        for name in {**expected, **found}
    }


def _error(a: Tensor, b: Tensor, least: float) -> float:
    if a.shape != b.shape:
        return math.inf
    same = (a == b) | (a.isnan() & b.isnan())
    difference = float(torch.where(same, 0.0, a - b).abs().max()) if a.numel() else 0.0
    if difference == 0.0:
        return 0.0
    size = max(_largest(b), least)
    error = difference / size if size else math.inf
    return error if error == error else math.inf


def _largest(tensor: Tensor) -> float:
    finite = tensor[tensor.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
