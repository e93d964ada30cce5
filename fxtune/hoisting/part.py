"""Parts of tensors: what a reader needs of a value.

Sizes are ints, or symbolic ints, which are compared as they are written: comparing them would put guards on.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fxtune.view import example_size

Shape = tuple[Any, ...]


def written(size: Any) -> Any:
    """A size as a number or an expression, which may be compared."""
    return size if isinstance(size, int) else size.node.expr


@dataclass(frozen=True)
class Range:
    """So many places of an axis, from `start` on; a negative start counts from the end, as in Python."""

    start: int
    length: int

    @property
    def stop(self) -> int:
        """The end, as a slice has it."""
        return (self.start + self.length) or sys.maxsize if self.start < 0 else self.start + self.length

    def __str__(self) -> str:
        return str(self.start) if self.length == 1 else f"{self.start}..{self.start + self.length - 1}"


@dataclass(frozen=True)
class Part:
    """A range on some axes of a tensor, and all of the others."""

    ranges: tuple[tuple[int, Range], ...] = ()

    @classmethod
    def of(cls, ranges: Mapping[int, Range | None]) -> Part:
        return cls(tuple(sorted((axis, range) for axis, range in ranges.items() if range is not None)))

    def __iter__(self) -> Iterator[tuple[int, Range]]:
        return iter(self.ranges)

    def __bool__(self) -> bool:
        """Whether anything is left out."""
        return bool(self.ranges)

    def on(self, axis: int) -> Range | None:
        """The range on an axis; None is all of it."""
        return dict(self.ranges).get(axis)

    def without(self, *axes: int) -> Part:
        return Part(tuple(pair for pair in self.ranges if pair[0] not in axes))

    def holds(self, other: Part) -> bool:
        """Whether `other` lies in it."""
        return all((theirs := other.on(axis)) and _inside(theirs, mine) for axis, mine in self)

    def within(self, whole: Part) -> Part:
        """The same part, as a part of the part `whole`, which holds it."""
        found = {axis: _relative(mine, whole.on(axis)) for axis, mine in self}
        return Part.of({axis: found[axis] for axis, mine in self if mine != whole.on(axis)})

    def fitting(self, shape: Shape) -> Part:
        """The same part of a tensor of this shape, with what can be said of it at fixed sizes."""
        return Part.of({axis: _fitting(range, shape[axis]) for axis, range in self})

    def share(self, shape: Shape) -> float:
        """How much of the tensor it is, in the example."""
        return math.prod(range.length / max(example_size(shape[axis]), 1) for axis, range in self)


WHOLE = Part()


def hull(parts: Iterable[Part], shape: Shape) -> Part:
    """The smallest part that holds them all."""
    first, *others = parts
    for other in others:
        first = Part.of({axis: _both(mine, other.on(axis)) for axis, mine in first}).fitting(shape)
    return first


def merged(parts: Iterable[Part], shape: Shape) -> list[Part]:
    """Parts that hold the same, of which no two can be one at no more cost."""
    found = list(dict.fromkeys(part.fitting(shape) for part in parts))
    while pair := next((pair for pair in itertools.combinations(found, 2) if _as_one(*pair, shape)), None):
        found = [part for part in found if part not in pair]
        found = list(dict.fromkeys([*found, hull(pair, shape)]))
    return found


def _as_one(a: Part, b: Part, shape: Shape) -> bool:
    return hull((a, b), shape).share(shape) <= (a.share(shape) + b.share(shape)) * (1 + 1e-9)


def _inside(range: Range, whole: Range) -> bool:
    same = (range.start < 0) == (whole.start < 0)
    return same and whole.start <= range.start and range.start + range.length <= whole.start + whole.length


def _relative(range: Range, whole: Range | None) -> Range:
    return range if whole is None else Range(range.start - whole.start, range.length)


def _fitting(range: Range, size: Any) -> Range | None:
    if not isinstance(size, int):
        return range
    start = range.start + size if range.start < 0 else range.start
    return None if start == 0 and range.length >= size else Range(start, range.length)


def _both(a: Range | None, b: Range | None) -> Range | None:
    if a is None or b is None or (a.start < 0) != (b.start < 0):
        return None
    start = min(a.start, b.start)
    return Range(start, max(a.start + a.length, b.start + b.length) - start)
