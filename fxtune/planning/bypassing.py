"""From a rule file's bypass to its plan."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import fx

from fxtune.errors import MatchError, PlanError
from fxtune.matching import Port, Site, Sites
from fxtune.planning.backbone import BACKBONE, backbone
from fxtune.planning.bypass import BypassPlan
from fxtune.planning.choose import check_numbers
from fxtune.planning.levels import check_tuners, goes_between, levels, masked_tokens
from fxtune.planning.place import Places
from fxtune.planning.seen import Seen, seen_in
from fxtune.planning.stems import Stems
from fxtune.planning.trunk import Trunk
from fxtune.rules import Bypass


def plan_bypass(root: fx.GraphModule, sites: Sites, bypass: Bypass, head: str | None, where: str) -> BypassPlan:
    """What a bypass changes in a captured model.

    Args:
        root: the captured model.
        sites: its sites.
        bypass: what is asked for, completed.
        head: module path of the head, if any.
        where: where it was written.

    Raises:
        MatchError: its pattern matches nothing, or no site is chosen.
        PlanError: it cannot be spliced in; why.
    """
    assert bypass.along and bypass.splice and bypass.transition
    check_tuners(bypass, where)
    every = [backbone(sites, head, where)] if bypass.along == BACKBONE else sites.calls(bypass.along, where=where)
    stems = _chosen(bypass, sites, every, where)
    last = every[-1].output
    ports = [stems[0].input, *(site.output for site in stems)]
    between = any(goes_between(name, "vertical") for name in bypass.vertical or {})
    for before, after in itertools.pairwise(ports):
        _check_fit(before, after, between, sites, where)
    _check_fit(ports[-1], last, False, sites, where)
    if (ports[-1].width, ports[-1].positions) != (last.width, last.positions):
        raise PlanError(
            f"the bypass along {bypass.along} cannot end at `{stems[-1].path}`",
            found=f"{_size(ports[-1])} there, and {_size(last)} where the result goes in, behind `{every[-1].path}`",
            where=where,
            fix="let the last stem be of the same size",
        )
    places = Places(root)
    trunk = Trunk(sites, last.value, where)
    seen = [
        _seen(bypass, sites, places, site, pair, where)
        for site, pair in zip(stems, itertools.pairwise(ports), strict=True)
    ]
    masks = [one.mask for one in seen if one.mask is not None]
    home = Stems(sites.view, places, [*ports, *masks], last)
    return BypassPlan(
        text=_told(bypass),
        region=home.region,
        start=home.stem(ports[0]),
        reduced=bypass.reduce is not None,
        temperature=bypass.temperature,
        levels=tuple(levels(bypass, stems, ports, seen, home)),
        output=home.stem(last),
        transition=bypass.transition,
        splice=bypass.splice,
        still=trunk.still(places),
        inputs=trunk.inputs(places),
        trunk=trunk.values,
    )


def _seen(bypass: Bypass, sites: Sites, places: Places, site: Site, ends: tuple[Port, Port], where: str) -> Seen:
    """What a level's tuners may attend to, if any of them attends to tokens."""
    tokens = masked_tokens(bypass, *ends)
    return Seen() if tokens is None else seen_in(sites, places, site, tokens, where)


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


def _check_fit(before: Port, after: Port, between: bool, sites: Sites, where: str) -> None:
    """Two levels have as many axes, and only maps change their size; a network `between` them gives one vector for all
    that it reads, or one for each token."""
    alike = before.positions == after.positions
    if between:
        fits = after.positions == 1 or (alike and len(before.shape) == 3)
    else:
        fits = len(before.shape) == len(after.shape) and (alike or len(after.shape) == 4)
    if not fits:
        told = [f"{_size(port)} at {sites.view.values[port.value].place()}" for port in (before, after)]
        raise PlanError(
            "a bypass cannot lead from one of these values to the next",
            found=", then ".join(told),
            where=where,
            fix="let it end where one vector stands for a sample, or for each token that it reads (`along:`)"
            if between
            else "choose stems that are sequences of one length, or maps (`stems:`, `along:`)",
        )


def _size(port: Port) -> str:
    return f"{port.width} channels of {port.positions} positions on {len(port.shape)} axes"


def _told(bypass: Bypass) -> str:
    def told(side: str) -> str:
        insert = bypass.tuners.get(side)
        if insert is None:
            return "the identity"
        ((name, settings),) = insert.items()
        return f"{name}({', '.join(f'{k}={v}' for k, v in settings.items())})"

    width = "" if bypass.reduce is None else f" at 1/{bypass.reduce} of the width"
    mixed = "" if bypass.mixed is None else f", mixed {told('mixed')}"
    sides = f"horizontal {told('horizontal')}, vertical {told('vertical')}{mixed}"
    return f"bypass along {bypass.along}{width}: {sides}"
