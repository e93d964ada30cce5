"""Where a unit begins and ends: the values that its module takes in and gives."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import torch

from fxtune.matching.site import Port
from fxtune.view import View, example_size
from fxtune.vocabulary import RESHAPING


class Edges:
    """Finds the ends of units, and what can be read there."""

    def __init__(self, view: View) -> None:
        self.view = view

    def end(self, value: int, path: str) -> int:
        """The value as the unit's module gives it: after its output dropout and layout, before drop path and the sum.

        What lies in another module is that one's: a classifier's dropout behind the last block, say.
        """
        while True:
            reader = self._only_reader(value)
            # In a net without modules of its own only dropout is sure to belong to the branch.
            kinds = ("dropout", "layout", "cast") if path else ("dropout",)
            if reader is None or self.view.quiet.get(reader) not in kinds or not self._inside(reader, path):
                return value
            value = reader

    def begin(self, value: int, path: str) -> int:
        """The value as the unit's module is given it: before the layout and casts with which the unit begins."""
        while path and self.view.quiet.get(value) in ("layout", "cast") and self._inside(value, path):
            value = self.view.values[value].inputs()[0].id
        return value

    def operation(self, node: int, reads: int, path: str) -> tuple[Port, Port]:
        """What one operation reads and gives: outside the reshapes around it that keep the channels an axis.

        A linear map that is written for matrices flattens the batch and restores it. What changes the order of tokens
        is passed on neither side, so that both have the same; dropout is another operation.
        """
        gives = self._result(node)
        rank, rank_in = (len(self.view.values[value].shape) for value in (gives, reads))
        axis = self.view.axes.get(gives, rank - 1)
        axis_in = axis if rank_in == rank else self.view.axes.get(reads, rank_in - 1)
        taken = self._outward(reads, axis_in, path, self._layout_before)
        return taken, self._outward(gives, axis, path, self._layout_behind)

    def _outward(self, value: int, axis: int, path: str, step: Callable[[int, str], int | None]) -> Port:
        """The value as far out as reshapes lead that keep the channels, which lie on `axis`, an axis."""
        while (further := step(value, path)) is not None:
            moved = self._kept(axis, value, further)
            if moved is None:
                break
            value, axis = further, moved
        return self._port(value, axis)

    def _layout_before(self, value: int, path: str) -> int | None:
        return self.view.values[value].inputs()[0].id if self._reshapes(value, path) else None

    def _layout_behind(self, value: int, path: str) -> int | None:
        reader = self._only_reader(value)
        return reader if reader is not None and self._reshapes(reader, path) else None

    def _result(self, node: int) -> int:
        """The value of an operation; of one that returns its statistics too, the first item."""
        value = self.view.values[node]
        if isinstance(value.val, torch.Tensor):
            return node
        items = (self.view.values[reader] for reader in self.view.readers.get(node, []))
        return next(item.id for item in items if item.target is operator.getitem and item.args[1] == 0)

    def port(self, value: int, output: int) -> Port:
        """What can be read of a value; `output` tells its channel axis where its own operators don't."""
        last = len(self.view.values[value].shape) - 1
        return self._port(value, min(self.view.axes.get(value, self.view.axes.get(output, last)), last))

    def _port(self, value: int, axis: int) -> Port:
        found = self.view.values[value]
        positions = math.prod(example_size(size) for i, size in enumerate(found.shape) if i not in (0, axis))
        return Port(value, tuple(found.taps), tuple(map(str, found.shape)), axis, int(found.shape[axis]), positions)

    def _only_reader(self, value: int) -> int | None:
        readers = self.view.readers.get(value, [])
        return readers[0] if len(readers) == 1 else None

    def _inside(self, value: int, path: str) -> bool:
        return not path or f"{self.view.values[value].module}.".startswith(f"{path}.")

    def _reshapes(self, value: int, path: str) -> bool:
        return path != "" and self.view.values[value].op in RESHAPING and self._inside(value, path)

    def _kept(self, axis: int, value: int, other: int) -> int | None:
        """Where a reshape between two values leaves the channels, which lie on `axis` of the first; None if nowhere."""
        # Sizes are compared as they are written: no guard is put on a symbolic one.
        old, new = ([str(size) for size in self.view.values[v].shape] for v in (value, other))
        if axis == len(old) - 1 and new[-1:] == old[-1:]:
            return len(new) - 1
        return 1 if axis == 1 and len(new) > 1 and new[:2] == old[:2] else None
