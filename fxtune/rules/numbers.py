"""Sets of counted things (blocks, stages, widths) as people write them: ``"0..5, 8"``, ``"first 6"``, ``[0, 3]``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pydantic import StrictInt, StrictStr

NumberSet = StrictStr | list[StrictInt]
"""``"3"``, ``"0..5"`` (inclusive), ``"6.."``, ``"first 6"``, these joined by commas, or a list of integers."""

_SPAN = re.compile(r"(?P<first>\d+)(?P<range>\.\.(?P<last>\d+)?)?|first (?P<count>\d+)", re.ASCII)


@dataclass(frozen=True)
class Span:
    """The integers from `first` to `last`, both included; `last` None: without an end."""

    first: int
    last: int | None

    def __contains__(self, number: int) -> bool:
        return self.first <= number and (self.last is None or number <= self.last)


def spans(numbers: NumberSet) -> tuple[Span, ...]:
    """The spans that `numbers` is made of.

    Raises:
        ValueError: says what was expected.
    """
    if isinstance(numbers, str):
        return tuple(_span(part.strip()) for part in numbers.split(","))
    if any(number < 0 for number in numbers):
        raise ValueError("expected numbers from 0 on")
    return tuple(Span(number, number) for number in numbers)


def _span(text: str) -> Span:
    match = _SPAN.fullmatch(text)
    if match is None:
        raise ValueError(f"expected numbers such as '0..5', '0, 3, 5..7', '6..' or 'first 6', not {text!r}")
    if match["count"]:
        if int(match["count"]) == 0:
            raise ValueError("expected at least 'first 1'")
        return Span(0, int(match["count"]) - 1)
    first = int(match["first"])
    if not match["range"]:
        return Span(first, first)
    last = int(match["last"]) if match["last"] else None
    if last is not None and last < first:
        raise ValueError(f"expected the smaller number first, not {text!r}")
    return Span(first, last)
