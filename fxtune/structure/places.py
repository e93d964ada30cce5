"""The places that the numbers of a value have in another tensor, as steps along each of its axes.

What views, transposes and parts do to a tensor is known from the steps alone, however large it is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fxtune.structure.numbers import Take, strided

Span = tuple[int, int]
"""How many, and the step from one to the next."""

Spans = tuple[Span, ...]
"""Even steps inside of even steps, the outermost first."""


@dataclass(frozen=True)
class Places:
    """Places in another tensor.

    Attributes:
        offset: of the first number.
        axes: the steps along each axis.
    """

    offset: int
    axes: tuple[Spans, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(math.prod(size for size, _ in axis) for axis in self.axes)

    @property
    def take(self) -> Take:
        """All places in order, in as few spans as can be."""
        return Take(offset=self.offset, spans=_merged(itertools.chain(*self.axes)))

    def told(self, among: int | None = None) -> str:
        """As text: the shape alone where the places are all of `among`, in order."""
        whole = among is not None and self.take == lying((among,)).take
        return f"{self.shape}" if whole else f"{self.shape} {self.take}"

    def moved(self, order: Sequence[int]) -> Places:
        """With the axes in another order."""
        return replace(self, axes=tuple(self.axes[axis] for axis in order))

    def flat(self, first: int, last: int) -> Places:
        """With the axes from `first` up to before `last` as one."""
        one = tuple(itertools.chain(*self.axes[first:last]))
        return replace(self, axes=(*self.axes[:first], one, *self.axes[last:]))

    def shaped(self, shape: Sequence[int]) -> Places | None:
        """In another shape, the order of the numbers kept; None where no even steps are along an axis then."""
        spans = tuple(itertools.chain(*self.axes))
        # As it is first: of merged spans it is not known which channels they came from.
        axes = _divided(spans, shape) or _divided(_merged(spans), shape)
        return None if axes is None else replace(self, axes=axes)

    def at(self, axis: int, take: Take) -> Places | None:
        """Some places along an axis alone; None where these are no even steps."""
        spans = _merged(self.axes[axis])
        if len(spans) > 1:
            return self._in_nest(axis, take)
        step = spans[0][1] if spans else 0
        taken = tuple((size, inner * step) for size, inner in take.spans)
        return self._with(axis, self.offset + take.offset * step, taken)

    def _in_nest(self, axis: int, take: Take) -> Places | None:
        """Along an axis whose steps lie inside of each other, one number or whole runs of the inner ones."""
        spans = self.axes[axis]
        if take == lying((self.shape[axis],)).take:
            return self
        if take.size == 1:
            return self._with(axis, self.offset + _place(take.offset, spans), ())
        inner = math.prod(size for size, _ in spans[1:])
        if len(take.spans) != 1 or take.spans[0][1] != 1 or take.offset % inner or take.size % inner:
            return None
        offset = self.offset + take.offset // inner * spans[0][1]
        return self._with(axis, offset, ((take.size // inner, spans[0][1]), *spans[1:]))

    def _with(self, axis: int, offset: int, spans: Spans) -> Places:
        return Places(offset, (*self.axes[:axis], spans, *self.axes[axis + 1 :]))

    def viewed(self, proxy: Tensor, result: Tensor) -> Places | None:
        """What a view makes of the places that it makes `result` of `proxy`, a contiguous tensor of this shape."""
        if not result._is_view():
            return None
        starts, steps = [], proxy.stride()
        left = int(result.storage_offset())
        for step in steps:
            starts.append(left // step if step else 0)
            left -= starts[-1] * step
        found: list[tuple[int | None, int]] = []
        taken = {axis: Take(offset=start, spans=()) for axis, start in enumerate(starts)}
        for size, step in zip(result.shape, result.stride(), strict=True):
            source = None if size == 1 or step == 0 else _axis(step, proxy)
            found.append((source, int(size)))
            if source is not None:
                taken[source] = Take(offset=starts[source], spans=((int(size), step // steps[source]),))
        places: Places | None = self
        for axis, take in taken.items():
            places = places and places.at(axis, take)
        if places is None:
            return None
        axes = [((size, 0),) * (size != 1) if source is None else places.axes[source] for source, size in found]
        return replace(places, axes=tuple(axes))

    def rows(self, width: int) -> tuple[Take | None, Places]:
        """Of a tensor whose last axis has this width: which places of that axis there are, and the places among these
        alone. None for all, or where they do not follow each other evenly."""
        first = self.offset % width
        spans = list(itertools.chain(*self.axes))
        inner = [(size, step) for size, step in spans if step % width]
        if first + sum((size - 1) * step for size, step in inner) >= width or any(step < 0 for _, step in inner):
            return None, self
        channels = Take(offset=first, spans=tuple(inner)).places()
        read = torch.zeros(width, dtype=torch.bool, device="cpu")
        read[channels] = True
        take = strided(read.nonzero().flatten())
        many = int(read.sum())
        if take is None or many == width:
            return None, self
        rank = torch.cumsum(read, 0) - 1

        def narrowed(size: int, step: int) -> Span:
            return (size, int(rank[first + step] - rank[first]) if step % width else step // width * many)

        axes = tuple(tuple(narrowed(*span) for span in axis) for axis in self.axes)
        narrow = Take(offset=int(rank[first]), spans=tuple(narrowed(*span) for span in inner))
        if not torch.equal(narrow.places(), rank[channels]):
            return None, self
        return take, Places(self.offset // width * many + narrow.offset, axes)


def lying(shape: Sequence[int], last: int | None = None) -> Places:
    """The places of a tensor's own numbers, the axis `last` counted fastest."""
    order = [axis for axis in range(len(shape)) if axis != last] + ([] if last is None else [last])
    step, steps = 1, {}
    for axis in reversed(order):
        steps[axis] = step
        step *= shape[axis]
    return Places(0, tuple(((size, steps[axis]),) * (size != 1) for axis, size in enumerate(shape)))


def _merged(spans: Sequence[Span] | itertools.chain[Span]) -> Spans:
    found: list[Span] = []
    for size, step in spans:
        if size == 1:
            continue
        if found and found[-1][1] == size * step:
            found[-1] = (found[-1][0] * size, step)
        else:
            found.append((size, step))
    return tuple(found)


def _divided(spans: Spans, shape: Sequence[int]) -> tuple[Spans, ...] | None:
    """The spans dealt out to axes of these sizes, each a run of them; a span may be parted in two."""
    left = list(spans)
    axes: list[Spans] = []
    for length in reversed(shape):
        axis: list[Span] = []
        while length > 1:
            if not left:
                return None
            size, step = left.pop()
            if length % size == 0:
                axis.insert(0, (size, step))
                length //= size
            elif size % length == 0:
                axis.insert(0, (length, step))
                left.append((size // length, step * length))
                length = 1
            else:
                return None
        axes.insert(0, tuple(axis))
    return None if any(size != 1 for size, _ in left) or 0 in shape else tuple(axes)


def _place(number: int, spans: Spans) -> int:
    place = 0
    for size, step in reversed(spans):
        place += number % size * step
        number //= size
    return place


def _axis(step: int, proxy: Tensor) -> int:
    """The axis of a contiguous tensor along which this is a step."""
    fitting = [axis for axis, size in enumerate(proxy.shape) if size > 1 and proxy.stride(axis) <= step]
    return min(fitting)
