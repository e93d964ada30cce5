"""What the tokens of a unit attend to, for tuners beside the unit that attend to the same tokens."""

from __future__ import annotations

from dataclasses import dataclass

from fxtune.errors import PlanError
from fxtune.matching import Port, Site, Sites, port
from fxtune.planning.core import core_edit
from fxtune.planning.masks import fused_mask
from fxtune.planning.place import Places
from fxtune.view import Tap, View, example_size


@dataclass(frozen=True)
class Seen:
    """What the tokens of a unit may attend to.

    Attributes:
        mask: boolean, or added to the logits, B x 1 x queries x keys or of one query for all; None for everything.
        causal: whether each token sees those before it only, beside the mask.
    """

    mask: Port | None = None
    causal: bool = False


def seen_in(sites: Sites, places: Places, unit: Site, tokens: Port, where: str) -> Seen:
    """What the first self-attention of a unit lets its tokens attend to; everything where it has none.

    Args:
        sites: the model's sites.
        places: the regions.
        unit: the unit.
        tokens: what the tuner attends to.
        where: where the bypass was written, for errors.

    Raises:
        PlanError: there is an attention that is none of the sites; or its mask is not one of these tokens, or differs
            by head; or there are several masks.
    """
    view, inside = sites.view, range(unit.input.value + 1, unit.output.value + 1)
    refused = _Refusal(unit, where)
    for mha in sites.calls("mha"):
        attention = mha.attention
        if attention is None or attention.cross or attention.core not in inside:
            continue
        found = _masks(view, places, mha)
        if len(found) > 1:
            raise refused(f"{len(found)} masks are added to its logits")
        for mask, plain in found:
            shape = [example_size(size) for size in view.values[mask].shape]
            count = tokens.positions
            if not plain or shape[1:2] + shape[3:] != [1, count] or shape[2] not in (1, count):
                sizes = " x ".join(map(str, shape))
                raise refused(f"{view.values[mask].place()}, {sizes}, is no mask of {count} tokens for all heads")
            return Seen(port(view, mask, 1), attention.causal)
        return Seen(None, attention.causal)
    unknown = [id for op in ("sdpa", "softmax") for id in view.by_op.get(op, ()) if id in inside]
    if unknown:
        raise refused(f"{view.values[unknown[0]].place()} belongs to no attention that is known")
    return Seen()


class _Refusal:
    def __init__(self, unit: Site, where: str) -> None:
        self.unit, self.where = unit, where

    def __call__(self, found: str) -> PlanError:
        return PlanError(
            f"a tuner cannot attend to the tokens of the {self.unit.kind} at `{self.unit.path}` as the unit does",
            found=found,
            where=self.where,
            fix="choose other stems (`stems:`), or tuners that treat each token alone",
        )


def _masks(view: View, places: Places, mha: Site) -> list[tuple[int, bool]]:
    """All values that mask the logits, and whether they do so as they are, for whole samples."""
    assert mha.attention is not None
    if mha.attention.product is None:
        mask = fused_mask(view.values[mha.attention.core])
        return [] if mask is None else [(mask.id, True)]
    region, core = core_edit(view, places, mha, "attend")
    return [(view.tapped[Tap(region, bias.node)][0], bias.factor == 1 and bias.groups is None) for bias in core.biases]
