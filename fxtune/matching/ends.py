"""What one operation reads and gives: outside the layout that its module puts around it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fxtune.matching.edges import inside, only_reader, port
from fxtune.matching.site import Port
from fxtune.view import Value, View, example_size, written
from fxtune.vocabulary import RESHAPING


class Ends:
    """Finds the two ends of single operations.

    A linear map that is written for matrices flattens the batch and restores it; a norm of the last axis brings the
    channels there and back. Both ends have their tokens in the same order, and as far as can be in the same shape: else
    they are taken further in. Dropout is another operation.
    """

    def __init__(self, view: View) -> None:
        self.view = view

    def of(self, node: int, reads: int, path: str) -> tuple[Port, Port]:
        """What the operation at `node` reads and gives, as the module `path` reads and gives it.

        Args:
            node: the operation.
            reads: the value that it is given.
            path: the module that computes it; without one nothing around the operation is known to be its own.
        """
        gives = self._result(node)
        rank, rank_in = (len(self.view.values[value].shape) for value in (gives, reads))
        axis = self.view.axes.get(gives, rank - 1)
        axis_in = axis if rank_in == rank else self.view.axes.get(reads, rank_in - 1)
        ends = [
            (
                self._outward(_End(reads, axis_in, tuple(range(rank_in))), path, self._before, passes),
                self._outward(_End(gives, axis, tuple(range(rank))), path, self._behind, passes),
            )
            for passes in (_any_layout, _in_order, _nothing)
        ]
        ordered = [(taken, given) for taken, given in ends if taken.tokens == given.tokens]
        alike = [(taken, given) for taken, given in ordered if self._sizes(taken) == self._sizes(given)]
        taken, given = (alike or ordered)[0]
        return port(self.view, taken.value, taken.axis), port(self.view, given.value, given.axis)

    def _sizes(self, end: _End) -> list[int]:
        """The sizes of all axes but the channels', in the example."""
        shape = self.view.values[end.value].shape
        return [example_size(size) for axis, size in enumerate(shape) if axis != end.axis]

    def _outward(self, end: _End, path: str, step: _Step, passes: Callable[[_End], bool]) -> _End:
        """As far out as layout leads that keeps the channels an axis, inside the module and through what `passes`."""
        while path and (further := step(end)) is not None:
            layout = max(end.value, further.value)  # the operator between the two is the one that comes later
            # Axis 0 is the batch's: channels that are brought there cannot be told apart any more.
            if not inside(self.view, layout, path) or further.axis == 0 or not passes(further):
                break
            end = further
        return end

    def _before(self, end: _End) -> _End | None:
        """What the layout operator that gives a value reads."""
        value = self.view.values[end.value]
        if value.op in RESHAPING:
            return self._reshaped(end, value.inputs()[0])
        moved = _permutation(value)
        if moved is None:
            return None
        order = tuple(end.order[moved.index(axis)] for axis in range(len(moved)))
        return _End(value.inputs()[0].id, moved[end.axis], order)

    def _behind(self, end: _End) -> _End | None:
        """What the layout operator that reads a value gives."""
        reader = only_reader(self.view, end.value)
        if reader is None:
            return None
        value = self.view.values[reader]
        if value.op in RESHAPING:
            return self._reshaped(end, value)
        moved = _permutation(value)
        if moved is None:
            return None
        return _End(reader, moved.index(end.axis), tuple(end.order[axis] for axis in moved))

    def _reshaped(self, end: _End, other: Value) -> _End | None:
        """The end on the other side of a reshape that leaves the channels where they are, last or behind the batch."""
        # Sizes are compared as they are written: no guard is put on a symbolic one.
        old, new = ([written(size) for size in shape] for shape in (self.view.values[end.value].shape, other.shape))
        order = tuple(range(len(new)))
        if not end.in_order:
            return None
        if end.axis == len(old) - 1 and new[-1:] == old[-1:]:
            return _End(other.id, len(new) - 1, order)
        return _End(other.id, 1, order) if end.axis == 1 and len(new) > 1 and new[:2] == old[:2] else None

    def _result(self, node: int) -> int:
        """The value of an operation; of one that returns its statistics too, the first item."""
        value = self.view.values[node]
        if isinstance(value.val, torch.Tensor):
            return node
        items = (self.view.values[reader] for reader in self.view.readers.get(node, []))
        return next(item.id for item in items if item.target is operator.getitem and item.args[1] == 0)


@dataclass(frozen=True)
class _End:
    """An end of an operation on its way outward: a value, its channel axis, and what each axis was at the operation."""

    value: int
    axis: int
    order: tuple[int, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """The order of the tokens: all axes but the channels', counted anew."""
        axes = [place for axis, place in enumerate(self.order) if axis != self.axis]
        return () if axes == sorted(axes) else tuple(sorted(axes).index(place) for place in axes)

    @property
    def in_order(self) -> bool:
        """Whether the tokens are as the operation has them."""
        return self.tokens == ()


_Step = Callable[[_End], _End | None]


def _any_layout(_: _End) -> bool:
    return True


def _in_order(end: _End) -> bool:
    return end.in_order


def _nothing(_: _End) -> bool:
    return False


def _permutation(value: Value) -> list[int] | None:
    """Which axis of its operand each axis of a value is; None where it permutes nothing."""
    rank = len(value.shape)
    order = list(range(rank))
    if value.op == "permute":
        return [int(axis) % rank for axis in value.args[1]]
    if value.op in ("transpose", "swapaxes", "swapdims"):
        one, other = (int(axis) % rank for axis in value.args[1:3])
        order[one], order[other] = other, one
        return order
    return None
