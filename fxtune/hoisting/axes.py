"""Laws of operators that keep axes apart: each place on such an axis is computed from the same place of the operand.

An operator is described by `kept`: for each axis of the result, the operand's axis that it is, or None for one that is
new or on which places are mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fxtune.hoisting.call import Call, Moved
from fxtune.hoisting.part import Part

Law = Callable[[Call, Part], Moved | None]
Axes = Sequence[int | None]


def along(kept: Callable[[Call], Axes | None], operand: str = "self") -> Law:
    """The law of an operator on one tensor, given the axes that it keeps; what else it reads has no such axes."""

    def law(call: Call, part: Part) -> Moved | None:
        axes = kept(call)
        if axes is None or any(axes[axis] is None for axis, _ in part):
            return None
        return call.moved({operand: Part.of({int(axes[axis] or 0): range for axis, range in part})})

    return law


def permuted(call: Call) -> Axes:
    return call.axes("dims")


def transposed(call: Call) -> Axes | None:
    kind = "dim" if "dim0" in call.given else "axis"
    a, b = call.axis(f"{kind}0"), call.axis(f"{kind}1")
    if a is None or b is None:
        return None
    swap = {a: b, b: a}
    return [swap.get(axis, axis) for axis in range(len(call.shape))]


def last_two(call: Call) -> Axes:
    rank = len(call.shape)
    return list(range(rank)) if rank < 2 else [*range(rank - 2), rank - 1, rank - 2]


def reversed_axes(call: Call) -> Axes:
    return list(reversed(range(len(call.shape))))


def moved_axes(call: Call) -> Axes:
    """`movedim`, whose other axes stay in their order."""
    to = dict(zip(call.axes("destination"), call.axes("source"), strict=True))
    rest = iter([axis for axis in range(len(call.shape)) if axis not in to.values()])
    return [to[axis] if axis in to else next(rest) for axis in range(len(call.shape))]


def unsqueezed(call: Call) -> Axes | None:
    dim = call.given["dim"]
    if not isinstance(dim, int):
        return None
    new = dim % len(call.shape)
    return [None if axis == new else axis - (axis > new) for axis in range(len(call.shape))]


def reduced(call: Call) -> Axes:
    """Reductions, which mix places on the axes that they reduce."""
    gone = call.axes()
    rank = len(call.shape_of("self"))
    if call.given.get("keepdim"):
        return [None if axis in gone else axis for axis in range(rank)]
    return [axis for axis in range(rank) if axis not in gone]


def mixing_dim(call: Call) -> Axes:
    """`softmax` and others that mix places on one axis."""
    gone = call.axes()
    return [None if axis in gone else axis for axis in range(len(call.shape))]


def mixing_dims(call: Call) -> Axes:
    gone = call.axes("dims")
    return [None if axis in gone else axis for axis in range(len(call.shape))]


def normalised(call: Call) -> Axes:
    """Norms over the last axes, with weights of their sizes."""
    rank = len(call.shape)
    first = rank - len(call.given["normalized_shape"])
    return [axis if axis < first else None for axis in range(rank)]


def batch_only(call: Call) -> Axes:
    return [0, *[None] * (len(call.shape) - 1)]
