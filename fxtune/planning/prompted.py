"""Prompt rows at a site: where they join, which attention they take part in, and where they leave."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from fxtune.errors import PlanError
from fxtune.matching import Port, Site, Sites
from fxtune.planning.core import core_edit
from fxtune.planning.edits import Cut, Join, Prompted
from fxtune.planning.place import Places
from fxtune.planning.rows import Way, way
from fxtune.view import Tap, View


def prompted_edit(sites: Sites, places: Places, site: Site, method: str) -> tuple[str, Prompted]:
    """The region of the attention core that prompts at `site` take part in, and the edit that puts them there.

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

    def edit(self, method: str) -> tuple[str, Prompted]:
        region, core = core_edit(self.view, self.places, self.inner[0], method)
        start = self._start()
        found = self._way(start, through=method != "attend")
        cut = None
        if method != "attend" and self.site.output.value in found.values:
            cut = self._cut(found)
        return region, Prompted(
            join=self._join(start, found, region),
            core=core,
            query_rows=self.attention.q in found.values,
            resized=tuple(found.resized),
            bypasses=tuple(found.bypasses),
            cut=cut,
        )

    def _inside(self, other: Site) -> bool:
        return other.attention is not None and other.block is not None and other.block == self.site.block

    def _start(self) -> int:
        """What the rows join: an attention's context (which is its input, in self-attention), a unit's input."""
        if not self.own or not self.attention.cross:
            port: Port = self.site.input
            if len(port.shape) != 3 or port.channel_axis != 2:
                raise PlanError(
                    f"prompt rows cannot join the input of the {self.site.kind} at `{self.site.path}`",
                    found=f"it is [{', '.join(port.shape)}], not batch x tokens x channels",
                    fix="choose other sites (`where:`)",
                )
            return port.value
        return self.attention.context

    def _way(self, start: int, *, through: bool) -> Way:
        attention = self.attention
        ends = [attention.q, attention.k, attention.v]
        cores = {}
        if through:
            ends.append(self.site.output.value)
            cores = {inner.attention.core: inner.attention.q for inner in self.inner if inner.attention is not None}
        if self.own and attention.cross:
            ends.remove(attention.q)
        return way(self.view, start, ends, cores, f"the {self.site.kind} at `{self.site.path}`")

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
        """In the innermost region that holds the sequence and calls all that reads it on the way."""
        inside = set(found.values)
        taps = sorted(self.view.values[start].taps, key=lambda tap: -len(tap.region))
        for tap in taps:
            if f"{core}.".startswith(f"{tap.region}." if tap.region else ""):
                readers = [reader for reader in self.places.node(tap).users if self._reads(tap, reader, inside)]
                if set(self._leaves(tap)) >= self._all(start, inside):
                    return Join(tap.region, tap.node, tuple(sorted(reader.name for reader in readers)))
        raise PlanError(
            f"prompt rows cannot join the input of the {self.site.kind} at `{self.site.path}`",
            found="no graph of the model holds it for all that reads it",
            fix="choose other sites (`where:`)",
        )

    def _all(self, start: int, inside: set[int]) -> set[int]:
        return {reader for reader in self.view.readers.get(start, []) if reader in inside}

    def _leaves(self, tap: Tap) -> Iterator[int]:
        """The values that are computed from a tapped one in its region or in one that the region calls."""
        for reader in self.places.node(tap).users:
            yield from self._computed(tap, reader)

    def _computed(self, tap: Tap, reader: fx.Node) -> Iterator[int]:
        inner = self.places.inner(tap, reader)
        if inner is None:
            yield from self.view.computed_at(Tap(tap.region, reader.name))
        for placeholder in inner or ():
            yield from self._leaves(placeholder)

    def _reads(self, tap: Tap, reader: fx.Node, inside: set[int]) -> bool:
        """Whether a reader sees the rows; a region that it calls must see them everywhere or nowhere."""
        computed = [id for id in self._computed(tap, reader) if self.view.is_tensor(id)]
        seen = [id in inside for id in computed]
        if any(seen) and not all(seen):
            other = self.view.values[computed[seen.index(False)]]
            raise PlanError(
                f"prompt rows cannot join the input of the {self.site.kind} at `{self.site.path}`",
                found=f"{other.place()} reads it in the same module, and must not see them",
                fix="choose other sites (`where:`)",
            )
        return any(seen)
