"""Where a unit begins and ends: the values that its module takes in and gives."""

from __future__ import annotations

import math

from fxtune.matching.site import Port
from fxtune.view import View, example_size, written


class Edges:
    """Finds the ends of units, and what can be read there."""

    def __init__(self, view: View) -> None:
        self.view = view

    def end(self, value: int, path: str) -> int:
        """The value as the unit's module gives it: after its output dropout and layout, before drop path and the sum.

        What lies in another module is that one's: a classifier's dropout behind the last block, say.
        """
        while True:
            reader = only_reader(self.view, value)
            # In a net without modules of its own only dropout is sure to belong to the branch.
            kinds = ("dropout", "layout", "cast") if path else ("dropout",)
            if reader is None or self.view.quiet.get(reader) not in kinds or not self._inside(reader, path):
                return value
            value = reader

    def begin(self, value: int, path: str) -> int:
        """The value as the unit's module is given it: before the layout and casts with which the unit begins.

        What a module that is kept whole ends with, behind other steps, is its own: nothing before it can be read.
        """
        found = value
        while path and self.view.quiet.get(value) in ("layout", "cast") and self._inside(value, path):
            value = self.view.values[value].inputs()[0].id
            if self.view.values[value].taps or not self.view.values[found].taps:
                found = value
        return found

    def port(self, value: int, output: int) -> Port:
        """What can be read of a value; `output` tells its channel axis where its own operators don't."""
        last = len(self.view.values[value].shape) - 1
        return port(self.view, value, min(self.view.axes.get(value, self.view.axes.get(output, last)), last))

    def _inside(self, value: int, path: str) -> bool:
        return inside(self.view, value, path)


def port(view: View, value: int, axis: int) -> Port:
    """What can be read of a value that has its channels on `axis`."""
    found = view.values[value]
    positions = math.prod(example_size(size) for i, size in enumerate(found.shape) if i not in (0, axis))
    return Port(value, tuple(found.taps), tuple(map(written, found.shape)), axis, int(found.shape[axis]), positions)


def only_reader(view: View, value: int) -> int | None:
    """The value that is computed from this one, where there is just one."""
    readers = view.readers.get(value, [])
    return readers[0] if len(readers) == 1 else None


def inside(view: View, value: int, path: str) -> bool:
    """Whether a module, or one inside of it, computes a value."""
    return not path or f"{view.values[value].module}.".startswith(f"{path}.")
