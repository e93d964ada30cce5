"""Laws of operators that compute each number from those in the same place."""

from __future__ import annotations

from fxtune.hoisting.call import Call, Moved, Touch
from fxtune.hoisting.part import Part, Shape, written


def elementwise(call: Call, part: Part) -> Moved:
    """A part of the result needs the same part of each operand; an operand of size 1 on an axis is read again."""
    return call.each(lambda shape: broadcast(part, call.shape, shape))


def broadcast(part: Part, result: Shape, operand: Shape) -> Part:
    """The part of an operand whose axes line up with the result's from the last one on."""
    missing = len(result) - len(operand)
    aligned = ((axis - missing, range) for axis, range in part if axis >= missing)
    return Part.of({axis: range for axis, range in aligned if written(operand[axis]) != 1})


def cast(call: Call, part: Part) -> Moved:
    """A cast, perhaps to the dtype of another tensor."""
    like = next((name for name in ("other", "tensor") if name in call.given), None)
    return elementwise(call, part) if like is None else call.moved({"self": part, like: Touch(call.operand(like))})
