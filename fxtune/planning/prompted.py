"""Prompt rows at a site: where they join, which attentions they take part in, and where they leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fxtune.errors import PlanError
from fxtune.matching import Attention, Site, Sites
from fxtune.planning.asides import find_asides
from fxtune.planning.core import core_edit
from fxtune.planning.edits import Aside, Core, Cut, Join, MaskRows, Prompted, Resize
from fxtune.planning.joining import find_join
from fxtune.planning.masks import mask_rows
from fxtune.planning.place import Places
from fxtune.planning.rows import Way, way
from fxtune.view import Tap, View


@dataclass(frozen=True)
class Prompts:
    """What prompts come to.

    Attributes:
        region: the region that holds the tuner.
        edit: what changes.
        attention: the first attention that they take part in.
        width: channels of the sequence that they join.
    """

    region: str
    edit: Prompted
    attention: Attention
    width: int


def prompts_at(sites: Sites, places: Places, site: Site, method: str) -> Prompts:
    """The prompts of one site.

    On an attention the rows join its context and leave behind its projection; on any other unit they join its input,
    take part in its first attention, and leave at its end. In the unbound form they leave at the core.

    Raises:
        PlanError: the unit has no attention, or there is no place for rows; where.
    """
    planner = _Planner(sites, places, site, site)
    attention, start, unbound = planner.attention, planner.start(), method == "attend"
    masks: tuple[MaskRows, ...] = ()
    if planner.own and attention.cross:
        found = planner.way(start, [attention.k, attention.v], {})  # the context's rows end there
    elif unbound:
        found = planner.way(start, [attention.q, attention.k, attention.v], {})
    else:
        found = planner.way(start, [attention.q, attention.k, attention.v, planner.end], planner.cores())
        further = [site for site in planner.met(found) if site is not planner.inner[0]]
        planner.check_context(further, found)
        masks = planner.masks(further)
    region, core = planner.core(planner.inner[0], method)
    return planner.prompts(region, start, found, ((region, core),), cut=planner.end in found.values, masks=masks)


def prompts_through(sites: Sites, places: Places, run: Sequence[Site], method: str) -> Prompts:
    """Prompts that join the input of the first site and stay to the end of the last, alive in every attention between.

    Raises:
        PlanError: a unit has no attention of its own tokens, or there is no place for rows; where.
    """
    planner = _Planner(sites, places, run[0], run[-1])
    start = planner.start()
    ends = [planner.end]
    for inner in planner.attentions:
        ends += [inner.k, inner.v]
    found = planner.way(start, ends, planner.cores())
    met = planner.met(found)
    among = [site for site in met if planner.in_context(site, found)]
    cores = tuple(planner.core(site, method) for site in among)
    masks = planner.masks([site for site in met if site not in among])
    return planner.prompts(None, start, found, cores, cut=True, masks=masks)


class _Planner:
    def __init__(self, sites: Sites, places: Places, first: Site, last: Site) -> None:
        self.view: View = sites.view
        self.places, self.site = places, first
        self.end = last.output.value
        self.own = first.attention is not None and first.attention.whole
        between = range(first.block or 0, (last.block or 0) + 1)
        self.inner = [first] if self.own else [site for site in sites.of("mha") if site.block in between]
        self.attentions = [site.attention for site in self.inner if site.attention is not None]
        if not self.attentions or (first.block is None and not self.own):
            raise self.refused("it has no attention")
        self.attention = self.attentions[0]

    def start(self) -> int:
        """What the rows join: an attention's context (which is its input, in self-attention), a unit's input."""
        start = self.attention.context if self.own and self.attention.cross else self.site.input.value
        value = self.view.values[start]
        if len(value.shape) != 3 or self.view.axes.get(start, 2) != 2:
            sizes = ", ".join(map(str, value.shape))
            raise self.refused(f"it is [{sizes}], not batch x tokens x channels: {value.place()}")
        return start

    def cores(self) -> dict[int, int]:
        """Through an attention only its queries' rows go on."""
        return {attention.core: attention.q for attention in self.attentions}

    def core(self, site: Site, method: str) -> tuple[str, Core]:
        return core_edit(self.view, self.places, site, method)

    def way(self, start: int, ends: Sequence[int], cores: dict[int, int]) -> Way:
        found = way(self.view, start, ends, cores, self._unit)
        if self.attention.k not in found.values:
            raise self.refused("it does not lead to an attention")
        if found.axes.get(self.attention.k) == 0:
            raise self.refused("it is tokens x batch x channels: the attention's batch axis comes from its second")
        return found

    def met(self, found: Way) -> list[Site]:
        """The attentions on the way."""
        return [site for site in self.inner if site.attention is not None and site.attention.core in found.values]

    def in_context(self, site: Site, found: Way) -> bool:
        """Whether an attention has the rows among its keys; else they go through it as queries alone."""
        return site.attention is not None and site.attention.k in found.values

    def check_context(self, further: Sequence[Site], found: Way) -> None:
        """A unit has its rows among the keys of its first attention alone."""
        for site in further:
            if self.in_context(site, found):
                raise self.refused(f"on their way to its end the attention at `{site.path}` reads the rows, too")

    def masks(self, crossed: Sequence[Site]) -> tuple[MaskRows, ...]:
        """What must get rows at attentions through which they go as queries alone."""
        found: list[MaskRows] = []
        for site in crossed:
            assert site.attention is not None
            region, core = self.core(site, "attend_original")
            found += mask_rows(self.view, self.places, site.attention, region, core, self.refused)
        return tuple(found)

    def prompts(
        self,
        region: str | None,
        start: int,
        found: Way,
        cores: tuple[tuple[str, Core], ...],
        *,
        cut: bool,
        masks: tuple[MaskRows, ...] = (),
    ) -> Prompts:
        join = find_join(self.view, self.places, start, found.values, region, self._unit)
        edit = Prompted(
            join=join,
            cores=cores,
            query_rows=self.attention.q in found.values,
            resized=tuple(resize for resize in found.resized if self._written_down(resize)),
            bypasses=tuple(found.bypasses),
            asides=tuple(self._asides(found, join, end=self.end if cut else None)),
            masks=masks,
            cut=self._cut(found) if cut else None,
            stays=region is None,
        )
        home = join.region if region is None else region
        return Prompts(home, edit, self.attention, int(self.view.values[start].shape[-1]))

    def _written_down(self, resize: Resize) -> bool:
        """Whether the graph holds the sizes; a module that is kept whole reads them from what it is given."""
        return self.places.node(Tap(resize.region, resize.node)).op == "call_function"

    def _asides(self, found: Way, join: Join, end: int | None) -> Iterator[Aside]:
        cores = [attention.core for attention in self.attentions]
        return find_asides(self.view, self.places, found, join, cores, end, self.refused)

    def _cut(self, found: Way) -> Cut:
        taps = [tap for tap in self.view.values[self.end].taps if self.places.node(tap).op != "placeholder"]
        if not taps or self.end not in found.axes:
            raise self.refused(f"they cannot leave behind {self.view.values[self.end].place()}")
        return Cut(taps[0].region, taps[0].node, found.axes[self.end])

    @property
    def _unit(self) -> str:
        return f"the {self.site.kind} at `{self.site.path}`"

    def refused(self, found: str) -> PlanError:
        return PlanError(
            f"prompt rows cannot join the input of {self._unit}",
            found=found,
            fix="choose other sites (`where:`), or a prefix, which brings keys and values of its own",
        )
