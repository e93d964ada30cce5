"""Laws of operators with sizes of their own: axes are merged, split and repeated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from fxtune.hoisting.call import Call, Moved, Want, op_of
from fxtune.hoisting.elementwise import broadcast
from fxtune.hoisting.part import Part, Range, Shape, written
from fxtune.view import example_size

VIEWING = frozenset({"view", "_unsafe_view", "view_copy"})
"""Operators that are `reshape` but for the memory of what they give."""


def regrouped(call: Call, part: Part) -> Moved | None:
    """`view` and its kin: a range of the result that is a range of the operand, in the order in which numbers lie."""
    before, after = call.shape_of("self"), call.shape
    found: dict[int, Range | None] = {}
    for ins, outs in groups(before, after):
        ranges = {axis: part.on(axis) for axis in outs}
        if not any(ranges.values()):
            continue
        ours = _one_to_one(ins, outs, ranges) or _through_flat(ins, outs, ranges, before, after)
        if ours is None:
            return None
        found |= ours
    # A part need not lie in memory so that it can be viewed.
    target = torch.ops.aten.reshape.default if part and op_of(call.node) in VIEWING else None
    return call.moved({"self": Part.of(found)}, _sizes(call, part), target=target)


def expanded(call: Call, part: Part) -> Moved:
    """`expand`: what it repeats is read whole."""
    return call.moved({"self": broadcast(part, call.shape, call.shape_of("self"))}, _sizes(call, part))


def squeezed(call: Call, part: Part) -> Moved | None:
    """`squeeze`, of the axes that had size 1 before: others may have it in a part."""
    before = call.shape_of("self")
    named = call.axes() if "dim" in call.given else tuple(range(len(before)))
    gone = [axis for axis in named if written(before[axis]) == 1]
    left = [axis for axis in range(len(before)) if axis not in gone]
    if len(left) != len(call.shape):
        return None
    want = Want(call.operand("self"), Part.of({left[axis]: range for axis, range in part}))
    return Moved(torch.ops.aten.squeeze.dims, (want, gone), {})


def _sizes(call: Call, part: Part) -> dict[str, Any]:
    """The sizes that the call is given, where it is given any, with those of the part."""
    name = next((name for name in ("size", "shape", "sizes") if isinstance(call.given.get(name), list | tuple)), None)
    if name is None:
        return {}
    first = (call.axis() or 0) if name == "sizes" else 0  # `unflatten` has the sizes of one axis
    sizes = list(call.given[name])
    for axis, range in part:
        if first <= axis < first + len(sizes):
            sizes[axis - first] = range.length
    return {name: sizes}


def groups(before: Shape, after: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """Runs of axes of two shapes of one tensor that hold the same numbers, as short as they can be."""
    i = j = 0
    while i < len(before) or j < len(after):
        ins, outs = [i] if i < len(before) else [], [j] if j < len(after) else []
        while not _same(before, ins, after, outs):
            many_in, many_out = (
                math.prod(example_size(s[a]) for a in axes) for s, axes in ((before, ins), (after, outs))
            )
            if (many_in <= many_out or i + len(ins) >= len(before)) and i + len(ins) < len(before):
                ins.append(i + len(ins))
            elif j + len(outs) < len(after):
                outs.append(j + len(outs))
            else:
                break
        yield ins, outs
        i, j = i + len(ins), j + len(outs)


def _same(before: Shape, ins: list[int], after: Shape, outs: list[int]) -> bool:
    a, b = (math.prod(written(shape[axis]) for axis in axes) for shape, axes in ((before, ins), (after, outs)))
    return bool(a == b)


def _one_to_one(ins: list[int], outs: list[int], ranges: dict[int, Range | None]) -> dict[int, Range | None] | None:
    return {ins[0]: ranges[outs[0]]} if len(ins) == len(outs) == 1 else None


def _through_flat(
    ins: list[int], outs: list[int], ranges: dict[int, Range | None], before: Shape, after: Shape
) -> dict[int, Range | None] | None:
    flat = _flat(outs, ranges, after)
    return None if flat is None else _split(flat, ins, before)


def _flat(axes: list[int], ranges: dict[int, Range | None], shape: Shape) -> Range | None:
    """The range of the merged axes that is these ranges of theirs; None where it is not one run."""
    start, length, several = 0, 1, False
    for number, axis in enumerate(axes):
        range, size = ranges[axis], shape[axis]
        if number and not isinstance(size, int):
            return None
        if range is None:
            if not number and not isinstance(size, int):
                return None
            start, length, several = start * size, length * size, several or size != 1
        elif several or range.start < 0:
            return None
        else:
            start, length, several = start * (size if number else 0) + range.start, range.length, range.length > 1
    return Range(start, length)


def _split(flat: Range, axes: list[int], shape: Shape) -> dict[int, Range | None] | None:
    """The ranges of these axes that are a range of them merged; None where it is no such part."""
    if any(not isinstance(shape[axis], int) for axis in axes[1:]):
        return None
    for number, axis in enumerate(axes):
        inner = math.prod(shape[later] for later in axes[number + 1 :])
        if flat.start % inner or flat.length % inner:
            continue
        row, length = flat.start // inner, flat.length // inner
        found: dict[int, Range | None] = {}
        for outer in reversed(axes[1 : number + 1]):
            row, place = divmod(row, shape[outer])
            found[outer] = Range(place, 1)
        if number:
            last = found[axis]
            assert last is not None
            if last.start + length > shape[axis]:
                return None
            found[axis] = Range(last.start, length)
            found[axes[0]] = Range(row, 1)
        else:
            found[axis] = Range(row, length)
        return found
    return None
