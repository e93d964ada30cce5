"""Masks of attentions through which prompt rows go as queries alone: cross-attention on their way."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fxtune.errors import PlanError
from fxtune.matching import Attention
from fxtune.planning.edits import Core, MaskRows
from fxtune.planning.place import Places
from fxtune.planning.rows import SIZED
from fxtune.view import Tap, Value, View


def mask_rows(
    view: View, places: Places, attention: Attention, region: str, core: Core, refused: Callable[[str], PlanError]
) -> Iterator[MaskRows]:
    """What is added to the logits of such an attention, which stays the model's own.

    Args:
        view: the view.
        places: the regions.
        attention: the attention.
        region: the region of its core.
        core: its core.
        refused: makes the error.

    Raises:
        PlanError: its mask is a tensor of the model's state; or its logits are reshaped to sizes in which rows have no
            place.
    """
    if attention.product is None:
        if (mask := fused_mask(view.values[attention.core])) is not None:
            node = next((tap.node for tap in mask.taps if tap.region == region), None)
            if node is None:
                raise refused(f"an attention on their way has a mask of its own: {mask.place()}")
            yield MaskRows(region, core.node, node, (core.node,))
        return
    logits = _logits(view, attention.product, attention.core)
    for value in (view.values[id] for id in logits):
        if value.op in SIZED:
            raise refused(f"an attention on their way reshapes its logits: {value.place()}")
    for bias in core.biases:
        users = places.node(Tap(region, bias.node)).users
        readers = [user.name for user in users if logits & set(view.tapped.get(Tap(region, user.name), []))]
        yield MaskRows(region, core.node, bias.node, tuple(sorted(readers)))


def fused_mask(core: Value) -> Value | None:
    """What the fused operator is given as its mask."""
    given = dict(zip((a.name for a in core.target._schema.arguments), core.args, strict=False)) | core.kwargs
    mask = given.get("attn_mask")
    return mask if isinstance(mask, Value) else None


def _logits(view: View, product: int, core: int) -> set[int]:
    """What is computed from the product of queries and keys, up to the core."""
    found = {product}
    for value in view.values[product + 1 : core]:
        if any(source.id in found for source in value.inputs()):
            found.add(value.id)
    return found
