"""Where prompt rows join a sequence in the nested graphs."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import fx

from fxtune.errors import PlanError
from fxtune.planning.edits import Join
from fxtune.planning.place import Places
from fxtune.view import Tap, View


def find_join(view: View, places: Places, start: int, way: Collection[int], inner: str | None, unit: str) -> Join:
    """The innermost region that holds the sequence for all that reads it on the way.

    Args:
        view: the view.
        places: the regions.
        start: value id of the sequence.
        way: ids of the values on the way of the rows.
        inner: a region that must lie in the one that is found, or be it; None for any.
        unit: what the rows are for, for errors.

    Raises:
        PlanError: there is none; or a module that sees the rows would use them for something else, too.
    """
    return _Finder(view, places, frozenset(way), unit).find(start, inner)


class _Finder:
    def __init__(self, view: View, places: Places, way: frozenset[int], unit: str) -> None:
        self.view, self.places, self.way, self.unit = view, places, way, unit

    def find(self, start: int, inner: str | None) -> Join:
        wanted = {self._visible(reader) for reader in self.view.readers.get(start, []) if reader in self.way}
        for tap in sorted(self.view.values[start].taps, key=lambda tap: -len(tap.region)):
            around = inner is None or not tap.region or f"{inner}.".startswith(f"{tap.region}.")
            if around and wanted <= set(self._computed_from(tap)):
                readers = [reader.name for reader in self.places.node(tap).users if self._sees(tap, reader)]
                return Join(tap.region, tap.node, tuple(sorted(readers)))
        raise self._refused("no graph of the model holds it for all that reads it on the way to the attention")

    def _sees(self, tap: Tap, reader: fx.Node) -> bool:
        """Whether a reader sees the rows; a region that it calls must see them everywhere or nowhere."""
        computed = [id for id in self._computed_by(tap, reader) if isinstance(self.view.values[id].val, torch.Tensor)]
        outside = [id for id in computed if id not in self.way]
        if len(outside) in (0, len(computed)):
            return not outside and bool(computed)
        raise self._refused(f"{self.view.values[outside[0]].place()} reads it in the same module, without rows")

    def _computed_from(self, tap: Tap) -> Iterator[int]:
        """The values that are computed from a tapped one in its region, and in those that the region hands it to."""
        for reader in self.places.node(tap).users:
            yield from self._computed_by(tap, reader)

    def _computed_by(self, tap: Tap, reader: fx.Node) -> Iterator[int]:
        inner = self.places.inner(tap, reader)
        if inner is None:
            yield from self.view.tapped.get(Tap(tap.region, reader.name), [])[:1]  # of a shared layer its first call
        for placeholder in inner or ():
            yield from self._computed_from(placeholder)

    def _visible(self, id: int) -> int:
        """A value inside a module that is kept whole as that module's result."""
        while not self.view.values[id].taps and self.view.readers.get(id):
            id = self.view.readers[id][0]
        return id

    def _refused(self, found: str) -> PlanError:
        return PlanError(
            f"prompt rows cannot join the input of {self.unit}",
            found=found,
            fix="choose other sites (`where:`), or a prefix, which brings keys and values of its own",
        )
