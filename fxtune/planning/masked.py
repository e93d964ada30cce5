"""The mask of a unit's attention, for tuners beside the unit that attend to the same tokens."""

from __future__ import annotations

from fxtune.errors import PlanError
from fxtune.matching import Attention, Port, Site, port
from fxtune.planning.core import core_edit
from fxtune.planning.place import Places
from fxtune.view import Tap, View, example_size


def mask_of(view: View, places: Places, site: Site, tokens: Port, where: str) -> Port | None:
    """The value by which a unit's attention is masked, B x 1 x queries x keys, or of one query for all.

    Args:
        view: the view.
        places: the regions.
        site: the unit; without an attention in it there is no mask.
        tokens: what the tuner attends to.
        where: where the bypass was written, for errors.

    Raises:
        PlanError: the mask is not one of these tokens, or differs by head; or there are several.
    """
    found = [] if site.attention is None else _found(view, places, site, site.attention)
    if not found:
        return None
    (mask, factor, groups), *others = found
    shape = [example_size(size) for size in view.values[mask].shape]
    count = tokens.positions
    fits = len(shape) == 4 and shape[1] == 1 and shape[2] in (1, count) and shape[3] == count
    if others or factor != 1 or groups is not None or not fits:
        sizes = (
            f"{view.values[mask].place()}, {' x '.join(map(str, shape))}, is not one of {count} tokens for all heads"
        )
        raise PlanError(
            f"a tuner cannot attend to the tokens of the {site.kind} at `{site.path}` as the unit does",
            found=f"{len(found)} masks are added to its logits" if others else sizes,
            where=where,
            fix="choose other stems (`stems:`), or tuners that treat each token alone",
        )
    return port(view, mask, 1)


def _found(view: View, places: Places, site: Site, attention: Attention) -> list[tuple[int, float, int | None]]:
    """Value, factor and groups of all that masks the logits."""
    if attention.product is None:
        return [] if attention.mask is None else [(attention.mask, 1.0, None)]
    region, core = core_edit(view, places, site, "attend")
    return [(view.tapped[Tap(region, bias.node)][0], bias.factor, bias.groups) for bias in core.biases]
