"""Prompt rows at a site: where they join, which attention they take part in, and where they leave."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from fxtune.errors import PlanError
from fxtune.matching import Attention, Port, Site, Sites
from fxtune.planning.core import core_edit
from fxtune.planning.edits import Cut, Join, Prompted
from fxtune.planning.place import Places
from fxtune.planning.rows import Way, way
from fxtune.view import Tap, View


def prompted_edit(sites: Sites, places: Places, site: Site, method: str) -> tuple[str, Prompted, Attention, int]:
    """The region of the attention core that prompts at `site` take part in, and the edit that puts them there; the
    attention, and the width of the sequence that the rows join.

    On an attention the rows join its context and leave behind its projection; on any other unit they join its input,
    take part in its first attention, and leave at its end. In the unbound form they leave at the core.

    Raises:
        PlanError: the unit has no attention, or there is no place for rows; where.
    """
    return _Planner(sites.view, sites, places, site).edit(method)


class _Planner:
    def __init__(self, view: View, sites: Sites, places: Places, site: Site) -> None:
        self.view, self.places, self.site = view, places, site
        self.own = site.attention is not None and site.attention.whole
        self.inner = [site] if self.own else [s for s in sites.of("mha") if self._inside(s)]
        if not self.inner or self.inner[0].attention is None:
            raise PlanError(
                f"prompts have no attention to take part in at the {site.kind} `{site.path}`",
                found="none inside the unit",
                fix="choose other sites (`where:`)",
            )
        self.attention = self.inner[0].attention
        self._name = f"the {site.kind} at `{site.path}`"

    def edit(self, method: str) -> tuple[str, Prompted, Attention, int]:
        region, core = core_edit(self.view, self.places, self.inner[0], method)
        start = self._start()
        found = self._way(start, through=method != "attend")
        if self.attention.k not in found.values:
            raise self._refused("it does not lead to an attention")
        cut = None
        if method != "attend" and self.site.output.value in found.values:
            cut = self._cut(found)
        edit = Prompted(
            join=self._join(start, found, region),
            core=core,
            query_rows=self.attention.q in found.values,
            resized=tuple(found.resized),
            bypasses=tuple(found.bypasses),
            cut=cut,
        )
        return region, edit, self.attention, int(self.view.values[start].shape[-1])

    def _inside(self, other: Site) -> bool:
        return other.attention is not None and other.block is not None and other.block == self.site.block

    def _start(self) -> int:
        """What the rows join: an attention's context (which is its input, in self-attention), a unit's input."""
        if not self.own or not self.attention.cross:
            port: Port = self.site.input
            if len(port.shape) != 3 or port.channel_axis != 2:
                raise self._refused(f"it is [{', '.join(port.shape)}], not batch x tokens x channels")
            return port.value
        return self.attention.context

    def _way(self, start: int, *, through: bool) -> Way:
        attention = self.attention
        if self.own and attention.cross:
            return way(self.view, start, [attention.k, attention.v], {}, self._name)  # the context's rows end there
        ends = [attention.q, attention.k, attention.v]
        cores = {}
        if through:
            ends.append(self.site.output.value)
            cores = {inner.attention.core: inner.attention.q for inner in self.inner if inner.attention is not None}
        return way(self.view, start, ends, cores, self._name)

    def _cut(self, found: Way) -> Cut:
        end = self.site.output.value
        tap = next((tap for tap in self.view.values[end].taps if self.places.node(tap).op != "placeholder"), None)
        if tap is None or end not in found.axes:
            raise PlanError(
                f"prompt rows cannot leave behind the {self.site.kind} at `{self.site.path}`",
                found=f"its output is {self.view.values[end].place()}",
                fix="choose other sites (`where:`)",
            )
        return Cut(tap.region, tap.node, found.axes[end])

    # ---- where they join ---------------------------------------------------------------------------------------------

    def _join(self, start: int, found: Way, core: str) -> Join:
        """In the innermost region that holds the sequence for all that reads it on the way."""
        inside = set(found.values)
        wanted = {self._visible(reader) for reader in self.view.readers.get(start, []) if reader in inside}
        for tap in sorted(self.view.values[start].taps, key=lambda tap: -len(tap.region)):
            around = not tap.region or f"{core}.".startswith(f"{tap.region}.")
            if around and wanted <= set(self._computed_from(tap)):
                readers = [reader.name for reader in self.places.node(tap).users if self._sees(tap, reader, inside)]
                return Join(tap.region, tap.node, tuple(sorted(readers)))
        raise self._refused("no graph of the model holds it for all that reads it on the way to the attention")

    def _sees(self, tap: Tap, reader: fx.Node, inside: set[int]) -> bool:
        """Whether a reader sees the rows; a region that it calls must see them everywhere or nowhere."""
        computed = [id for id in self._computed_by(tap, reader) if isinstance(self.view.values[id].val, torch.Tensor)]
        outside = [id for id in computed if id not in inside]
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
            f"prompt rows cannot join the input of the {self.site.kind} at `{self.site.path}`",
            found=found,
            fix="choose other sites (`where:`), or a prefix, which brings keys and values of its own",
        )
