"""The grid of tokens as an edit names it: two numbers, or a note of them where they change with the image."""

from __future__ import annotations

from dataclasses import replace

from fxtune.errors import PlanError
from fxtune.matching import Site
from fxtune.planning.edits import Note, OnGrid
from fxtune.planning.grids import Grid, Grids
from fxtune.planning.place import Places
from fxtune.view import Tap


def grid_edit(grid: Grid, grids: Grids, places: Places, read: Tap, site: Site) -> OnGrid:
    """How a tuner that reads tokens at `read` comes to know their grid.

    Raises:
        PlanError: the tokens have another grid in another call of the same layer; or the sizes of the map, which
            change with the image, cannot come there.
    """
    view = grids.view
    calls = [grids.of(id) for id in view.tapped[read]]
    if any(not _same(grid, other) for other in calls) or (len(calls) > 1 and not grid.fixed):
        raise _refused(site, "its layer is called several times, with other grids or with images of any size")
    if grid.fixed:
        return OnGrid(grid.prefix, (grid.height, grid.width))
    taps = view.values[grid.map].taps
    if not taps:
        raise _refused(site, f"its map is computed inside a module that is kept whole: {view.values[grid.map].place()}")
    return OnGrid(grid.prefix, _note(taps[0], read.region, places, site))


def _same(grid: Grid, other: Grid | str) -> bool:
    return isinstance(other, Grid) and replace(other, map=grid.map) == grid


def _note(tap: Tap, region: str, places: Places, site: Site) -> Note:
    """The way of the map's sizes to where they are read."""
    way = places.way(tap.region, region)
    if way is None:
        raise _refused(site, f"a layer between `{tap.region}` and `{region}` is called several times, for any size")
    return Note(tap, *way)


def _refused(site: Site, found: str) -> PlanError:
    return PlanError(
        f"the grid of the tokens at the {site.kind} at `{site.path}` is not known there",
        found=found,
        fix="choose other sites (`where:`), or a model for images of one size",
    )
