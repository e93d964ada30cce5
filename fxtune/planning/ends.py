"""What a tuner beside an operation reads, and what its result is added to: tokens, maps, or tokens on a grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fxtune.errors import PlanError
from fxtune.matching import Port, Site
from fxtune.planning.grids import Grid, Grids
from fxtune.rules import Rule
from fxtune.tuners import maps_widths, offers


@dataclass(frozen=True)
class Ends:
    """The two ends of a tuner.

    Attributes:
        read: what it reads.
        output: what its result is added to.
        method: its method, `forward` on tokens or `on_map`.
        grid: the grid of the tokens, where a tuner on maps reads tokens.
        facts: what it is told.
    """

    read: Port
    output: Port
    method: str = "forward"
    grid: Grid | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def ends_of(rule: Rule, site: Site, grids: Grids) -> Ends:
    """What the rule's tuner reads at a site, and how.

    A convolution gives a tuner that maps between widths its own map, whatever its stride.

    Raises:
        PlanError: a tuner between widths would have to read another number of positions than it gives; or a tuner on
            maps finds no map; why.
    """
    operation = site.operation
    if rule.reads == "input" and operation and operation.maps and _maps_maps(rule.tuner):
        read, output = operation.maps
        told = {"width_in": read.width, "convolution": operation.convolution}
        return Ends(read, output, "on_map", None, told)
    read = _read(rule, site)
    if offers(rule.tuner, "forward"):
        return Ends(read, site.output, facts={"width_in": read.width})
    grid = _grid(rule, site, read, grids)
    facts: dict[str, Any] = {"width_in": read.width}
    if grid is not None:
        facts |= {"prefix": grid.prefix, "grid": (grid.height, grid.width)}
    return Ends(read, site.output, "on_map", grid, facts)


def _maps_maps(tuner: str) -> bool:
    return maps_widths(tuner) and offers(tuner, "on_map")


def _read(rule: Rule, site: Site) -> Port:
    """Where input and output differ in shape, the tuner reads the output (definitions, section 3).

    A tuner that maps between widths reads the input whatever its width.
    """
    same_width = site.input.width == site.output.width or maps_widths(rule.tuner)
    same_positions = site.input.positions == site.output.positions
    if rule.reads == "input" and maps_widths(rule.tuner) and not same_positions:
        raise PlanError(
            f"{rule.tuner} cannot go on the {site.kind} at `{site.path}`",
            found=f"{site.input.positions} positions at its input and {site.output.positions} at its output",
            fix="choose sites that keep the positions apart (`where:`), or let the rule read the output "
            "(`reads: output`)",
        )
    return site.input if rule.reads == "input" and same_width and same_positions else site.output


def _grid(rule: Rule, site: Site, read: Port, grids: Grids) -> Grid | None:
    """The grid of the tokens at a site, or None where it has maps."""
    axes, layouts = {len(port.shape) for port in (read, site.output)}, {read.channel_axis, site.output.channel_axis}
    if axes == {4} and layouts <= {1, 3}:
        return None
    if axes == {3} and layouts == {2}:
        found = grids.of(read.value)
        if isinstance(found, Grid):
            return found
    else:
        found = f"it reads [{', '.join(read.shape)}] and gives [{', '.join(site.output.shape)}]"
    raise PlanError(
        f"{rule.tuner} computes on maps, and finds none at the {site.kind} at `{site.path}`",
        found=found,
        fix="choose sites of an image model that keep a map, or the tokens of its positions behind a fixed number of "
        "others, or another tuner",
    )
