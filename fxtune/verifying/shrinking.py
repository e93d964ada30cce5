"""From a failing example to a smaller one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from fxtune.verifying.example import Example

Finding = TypeVar("Finding")

_RUNS = 60


def smallest(
    example: Example,
    finding: Finding,
    smaller: Callable[[Example], Iterable[Example]],
    failing: Callable[[Example], Finding | None],
) -> tuple[Example, Finding]:
    """The last of a chain of smaller examples that all fail, and what was found there.

    Args:
        example: one that fails.
        finding: what was found there.
        smaller: candidates that are simpler, the simplest first.
        failing: what is found in a candidate; None where it doesn't fail.
    """
    runs = 0
    candidates = iter(smaller(example))
    while runs < _RUNS and (candidate := next(candidates, None)) is not None:
        runs += 1
        if (found := failing(candidate)) is not None:
            example, finding, candidates = candidate, found, iter(smaller(candidate))
    return example, finding
