"""Laws of operators that take parts of a tensor, and of those that put tensors together."""

from __future__ import annotations

import sys

import torch
from torch import fx

from fxtune.hoisting.call import Call, Moved, Want, item_of, op_of, shape_of, wanted
from fxtune.hoisting.part import WHOLE, Part, Range

UNBINDING = frozenset({"unbind"})
SPLITTING = frozenset(
    {"split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes"}
)
"""Operators that give a tuple of parts."""


def select(call: Call, part: Part) -> Moved | None:
    """One place of an axis, which is then gone."""
    dim, index = call.axis(), call.given["index"]
    if dim is None or not isinstance(index, int):
        return None
    return call.moved({"self": Part.of({**_past(part, dim), dim: Range(index, 1)})}, {"index": 0})


def slice(call: Call, part: Part) -> Moved | None:
    """A range of an axis."""
    dim = call.axis()
    if dim is None:
        return None
    range = _sliced(call, part.on(dim), dim)
    if range is not None:
        return call.moved({"self": Part.of({**dict(part), dim: range})}, {"start": 0, "end": range.length})
    return None if part.on(dim) else call.moved({"self": part})


def narrow(call: Call, part: Part) -> Moved | None:
    """A range of an axis, given by its length."""
    dim, start, length = call.axis(), call.given["start"], call.given["length"]
    if dim is None or not isinstance(start, int) or not isinstance(length, int):
        return None
    range = _of(part.on(dim), Range(start, length))
    return call.moved({"self": Part.of({**dict(part), dim: range})}, {"start": 0, "length": range.length})


def item(call: Call, part: Part) -> Moved | None:
    """An item of a tuple of parts: a part of what they are parts of."""
    source = item_of(call.node)
    name = op_of(source[0]) if source else ""
    if source is None or name not in UNBINDING | SPLITTING:
        return None
    whole = Call(source[0])
    name_of_operand = "tensor" if "tensor" in whole.given else "self"
    operand, dim = whole.operand(name_of_operand), whole.axis(of=name_of_operand)
    if dim is None:
        return None
    if name in UNBINDING:
        number = source[1] % len(source[0].meta["val"])
        want = Want(operand, Part.of({**_past(part, dim), dim: Range(number, 1)}))
        return Moved(torch.ops.aten.select.int, (want, dim, 0), {})
    range = _item_range(source[0], source[1], dim)
    if range is None:
        return None
    range = _of(part.on(dim), range)
    want = Want(operand, Part.of({**dict(part), dim: range}))
    return Moved(torch.ops.aten.slice.Tensor, (want, dim, 0, range.length), {})


def cat(call: Call, part: Part) -> Moved | None:
    """On the axis on which tensors are put together, those alone that have something of the range."""
    rank, tensors = len(call.shape), call.given["tensors"]
    dim = call.given.get("dim", 0) % rank
    range = part.on(dim)
    if range is None:  # a tensor of another rank is an empty one, which is allowed
        return call.moved({"tensors": [part if len(shape_of(tensor)) == rank else WHOLE for tensor in tensors]})
    tensors = [tensor for tensor in tensors if len(shape_of(tensor)) == rank]
    found = []
    start = 0
    for tensor in tensors:
        if start >= range.start + range.length:
            break
        size = shape_of(tensor)[dim]
        if range.start < 0 or not isinstance(size, int):
            return None
        first, stop = max(range.start, start) - start, min(range.start + range.length, start + size) - start
        if first < stop:
            ours = Part.of({**dict(part), dim: Range(first, stop - first)})
            found.append(Want(tensor, ours.fitting(shape_of(tensor))))
        start += size
    return Moved(call.node.target, (found, dim), {})


def stack(call: Call, part: Part) -> Moved | None:
    """Tensors on a new axis."""
    dim = call.given.get("dim", 0) % len(call.shape)
    tensors, range = list(call.given["tensors"]), part.on(dim)
    if range is not None:
        first = range.start % len(tensors)
        tensors = tensors[first : first + range.length]
    theirs = Part.of({axis - (axis > dim): range for axis, range in part.without(dim)})
    return Moved(call.node.target, (wanted(tensors, theirs), dim), {})


def _past(part: Part, dim: int) -> dict[int, Range]:
    """The ranges of what is left when an axis is gone, on the axes as they were."""
    return {axis + (axis >= dim): range for axis, range in part}


def _of(range: Range | None, whole: Range) -> Range:
    """A range of a range."""
    return whole if range is None else Range(whole.start + range.start, range.length)


def _sliced(call: Call, range: Range | None, dim: int) -> Range | None:
    """The operand's places of a range of a slice, where the literals tell them."""
    start, end, step = (call.given.get(name) for name in ("start", "end", "step"))
    start, end = 0 if start is None else start, sys.maxsize if end is None else end
    before, after = call.shape_of("self")[dim], call.shape[dim]
    if step not in (1, None) or not isinstance(start, int):
        return None
    if isinstance(before, int):
        start = min(max(start + before, 0) if start < 0 else start, before)
    if range is None:
        reaches = isinstance(end, int) and (start >= 0 or end == sys.maxsize)
        return Range(start, after) if isinstance(after, int) and reaches else None
    if range.start >= 0:
        return Range(start + range.start, range.length) if start >= 0 or isinstance(after, int) else None
    return range if isinstance(end, int) and end == sys.maxsize else None


def _item_range(source: fx.Node, index: int, dim: int) -> Range | None:
    """The places of one of the parts on their axis."""
    sizes = [item.shape[dim] for item in source.meta["val"]]
    index %= len(sizes)
    if not all(isinstance(size, int) for size in sizes[: index + 1]):
        return None
    return Range(sum(sizes[:index]), sizes[index])
