"""From a rule file's bypass to its plan."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import fx

from fxtune.errors import MatchError, PlanError
from fxtune.matching import Port, Site, Sites
from fxtune.planning.bypass import BypassPlan, Level, Resize
from fxtune.planning.choose import check_numbers
from fxtune.planning.place import Places
from fxtune.planning.stems import Stems
from fxtune.planning.trunk import Trunk
from fxtune.rules import Bypass
from fxtune.tuners import Placement, maps_widths, offers, refusal


def plan_bypass(root: fx.GraphModule, sites: Sites, bypass: Bypass, where: str) -> BypassPlan:
    """What a bypass changes in a captured model.

    Args:
        root: the captured model.
        sites: its sites.
        bypass: what is asked for, completed.
        where: where it was written.

    Raises:
        MatchError: its pattern matches nothing, or no site is chosen.
        PlanError: it cannot be spliced in; why.
    """
    assert bypass.along and bypass.splice and bypass.transition
    _check_tuners(bypass, where)
    every = sites.calls(bypass.along, where=where)
    stems = _chosen(bypass, sites, every, where)
    last = every[-1].output
    ports = [stems[0].input, *(site.output for site in stems)]
    for before, after in (*itertools.pairwise(ports), (ports[-1], last)):
        _check_fit(before, after, sites, where)
    if (ports[-1].width, ports[-1].positions) != (last.width, last.positions):
        raise PlanError(
            f"the bypass along {bypass.along} cannot end at `{stems[-1].path}`",
            found=f"{_size(ports[-1])} there, and {_size(last)} where the result goes in, behind `{every[-1].path}`",
            where=where,
            fix="let the last stem be of the same size",
        )
    places = Places(root)
    trunk = Trunk(sites, last.value, where)
    home = Stems(sites.view, places, ports, last)
    return BypassPlan(
        text=_told(bypass),
        region=home.region,
        start=home.stem(ports[0]),
        levels=tuple(_levels(bypass, stems, ports, home)),
        output=home.stem(last),
        transition=bypass.transition,
        splice=bypass.splice,
        still=trunk.still(places),
        inputs=trunk.inputs(places),
        trunk=trunk.values,
    )


def _check_tuners(bypass: Bypass, where: str) -> None:
    assert bypass.along
    for side, insert in bypass.tuners.items():
        for name in insert:
            reason = refusal(name, bypass.along)
            if reason is None and (not offers(name, "forward") or maps_widths(name)):
                reason = "it is no branch from tokens of one width to tokens of the same"
            if reason is not None:
                raise PlanError(f"{name} does not go on a bypass ({side})", found=reason, where=where)


def _chosen(bypass: Bypass, sites: Sites, every: Sequence[Site], where: str) -> list[Site]:
    """The sites that are stems; `blocks` counts the sites of the pattern."""
    stages = 1 + max((site.stage for site in every if site.stage is not None), default=-1)
    check_numbers(bypass.stems, len(every), stages, where)
    refused = [(site, bypass.stems.refusal(**{**site.facts(), "block": i})) for i, site in enumerate(every)]
    chosen = [site for site, reason in refused if reason is None]
    if chosen:
        check_numbers(bypass.where, len(chosen), stages, where)
        return chosen
    assert bypass.along
    details = [f"{site.path}: {reason}" for site, reason in refused if reason is not None][:10]
    details += [f"near miss, {miss.kind}: {miss}" for miss in sites.near_misses(bypass.along)]
    listed = "".join(f"\n    {line}" for line in details)
    raise MatchError(
        f"the bypass runs along `{bypass.along}`, and has no stem",
        found=f"{len(every)} {bypass.along} in the model{listed}",
        where=where,
        fix="change `along:` or `stems:`, or write a pattern for the units that were missed under `patterns:`",
    )


def _levels(bypass: Bypass, stems: Sequence[Site], ports: Sequence[Port], home: Stems) -> Iterator[Level]:
    for i, (site, before) in enumerate(zip(stems, ports, strict=False)):
        tuned = bypass.where.refusal(**{**site.facts(), "block": i}) is None
        yield Level(
            site=site,
            stem=home.stem(site.output),
            tuners={side: _named(insert) for side, insert in bypass.tuners.items()} if tuned else {},
            place=Placement(width=site.width, heads=site.heads, kind=site.kind, path=site.path),
            resize=_resize(before, site.output),
            width_in=before.width if before.width != site.output.width else None,
        )


def _named(insert: Mapping[str, Mapping[str, Any]]) -> tuple[str, Mapping[str, Any]]:
    return next(iter(insert.items()))


def _resize(before: Port, after: Port) -> Resize | None:
    if before.positions == after.positions:
        return None
    return "average" if after.positions < before.positions else "nearest"


def _check_fit(before: Port, after: Port, sites: Sites, where: str) -> None:
    """Two levels have as many axes, and only maps change their size."""
    if len(before.shape) == len(after.shape) and (before.positions == after.positions or len(after.shape) == 4):
        return
    told = [f"{_size(port)} at {sites.view.values[port.value].place()}" for port in (before, after)]
    raise PlanError(
        "a bypass cannot lead from one of these stems to the next",
        found=", then ".join(told),
        where=where,
        fix="choose stems that are sequences of one length, or maps (`stems:`, `along:`)",
    )


def _size(port: Port) -> str:
    return f"{port.width} channels of {port.positions} positions on {len(port.shape)} axes"


def _told(bypass: Bypass) -> str:
    def told(side: str) -> str:
        insert = bypass.tuners.get(side)
        if insert is None:
            return "the identity"
        name, settings = _named(insert)
        return f"{name}({', '.join(f'{k}={v}' for k, v in settings.items())})"

    return f"bypass along {bypass.along}: horizontal {told('horizontal')}, vertical {told('vertical')}"
