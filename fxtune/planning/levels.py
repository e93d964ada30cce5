"""The levels of a bypass: which tuners stand on each, and what they are told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fxtune.errors import PlanError
from fxtune.matching import Port, Site
from fxtune.planning.bypass import Level, Resize, Stem, Tuner
from fxtune.planning.seen import Seen
from fxtune.planning.stems import Stems
from fxtune.rules import Bypass
from fxtune.tuners import Placement, maps_widths, offers, reads_mask, refusal
from fxtune.view import View, example_size


def check_tuners(bypass: Bypass, where: str) -> None:
    """Raises PlanError where a tuner of a bypass does not go on the side that it is named for."""
    assert bypass.along
    for side, insert in bypass.tuners.items():
        for name in insert:
            reason = refusal(name, bypass.along)
            if reason is None and not goes_between(name, side) and (not offers(name, "forward") or maps_widths(name)):
                reason = "it is no branch from tokens of one width to tokens of the same"
            if reason is not None:
                raise PlanError(f"{name} does not go on a bypass ({side})", found=reason, where=where)


def goes_between(name: str, side: str) -> bool:
    """Whether a tuner is all that leads from one value of a bypass to the next: a network of its own."""
    return side == "vertical" and offers(name, "between")


def masked_tokens(bypass: Bypass, before: Port, after: Port) -> Port | None:
    """The tokens to which a tuner between two values attends, and must know the mask of; None where none does."""
    for side, insert in bypass.tuners.items():
        for name in insert:
            tokens = before if goes_between(name, side) else after
            if reads_mask(name) and len(tokens.shape) == 3:
                return tokens
    return None


def levels(
    bypass: Bypass, stems: Sequence[Site], ports: Sequence[Port], seen: Sequence[Seen], home: Stems
) -> Iterator[Level]:
    """The levels, in the order of computation.

    Args:
        bypass: what is asked for.
        stems: the sites whose outputs it reads.
        ports: x_0 to x_L.
        seen: what the tuners of each level may attend to.
        home: the region of the bypass.
    """
    for i, (site, before, own) in enumerate(zip(stems, ports, seen, strict=False)):
        stem = home.stem(site.output)
        tuned = bypass.where.refusal(**{**site.facts(), "block": i}) is None
        tuners = {side: _tuner(side, insert, stem) for side, insert in bypass.tuners.items()} if tuned else {}
        between = "vertical" in tuners and tuners["vertical"].method == "between"
        width, width_in = (_reduced(port.width, bypass) for port in (site.output, before))
        told = _between(before, site.output, width_in, home.view) if between else {"axes": stem.rank}
        place = Placement(width=width, heads=site.heads, kind=site.kind, path=site.path, causal=own.causal, **told)
        yield Level(
            site=site,
            stem=stem,
            tuners=tuners,
            place=place,
            mask=home.stem(own.mask) if own.mask is not None and tuners else None,
            resize=None if between else _resize(before, site.output),
            width_in=None if between or width_in == width else width_in,
        )


def _reduced(width: int, bypass: Bypass) -> int:
    """Channels of the bypass where the network has `width`."""
    return width if bypass.reduce is None else max(1, width // bypass.reduce)


def _tuner(side: str, insert: dict[str, dict[str, Any]], stem: Stem) -> Tuner:
    ((name, settings),) = insert.items()
    method = "forward"
    if goes_between(name, side):
        method = "between"
    elif side == "mixed" and offers(name, "on_map") and stem.rank == 4:
        method = "on_map"
    return Tuner(name, settings, method, masked=reads_mask(name))


def _between(before: Port, after: Port, width_in: int, view: View) -> dict[str, Any]:
    """What a tuner between two values is told of what it reads."""
    grid = tuple(map(example_size, view.values[before.value].shape[2:])) if len(before.shape) == 4 else ()
    pools = after.positions == 1 and before.positions > 1
    return {"width_in": width_in, "axes": len(before.shape), "grid": grid, "pools": pools}


def _resize(before: Port, after: Port) -> Resize | None:
    if before.positions == after.positions:
        return None
    return "average" if after.positions < before.positions else "nearest"
