"""``vpt`` and ``vpt_shallow``: visual prompt tuning, deep and shallow (Jia et al., ECCV 2022)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from fxtune.tuners.placement import Placement
from fxtune.tuners.registry import tuner
from fxtune.tuners.rows import PromptRows


@tuner("vpt")
class Vpt(PromptRows):
    """P learned tokens that join the input of a unit; what becomes of them at its end is thrown away. PD weights.

    The original form puts them into the sequence, from the unit's input to its end. In the unbound form the rows end
    at the unit's first attention, where ``(1 - λ) Attn(Q, K, V) + λ Attn(Q, K_pro, V_pro)`` is mixed: norm and FFN act
    on each token alone, so no other token sees what they make of the prompts.

    Args:
        place: where it goes; D is the width of what the rows join.
        tokens: P.
    """

    narrows: ClassVar[dict[str, dict[str, int | None]]] = {"tokens": {"prompts": 0}}

    def __init__(self, place: Placement, *, tokens: Annotated[int, Field(ge=0)] = 10) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.empty(tokens, place.width_in))
        self.scale = nn.Identity()
        nn.init.xavier_uniform_(self.prompts)


@tuner("vpt_shallow")
class VptShallow(Vpt):
    """P learned tokens that join the input of the first site and stay to the end of the last; PD weights in all.

    They run through every operation between, which acts on each token alone, and through every attention: in the
    original form as rows of the sequence, in the unbound one as ``(1 - λ) Attn(Q, K, V) + λ Attn(Q, K_pro, V_pro)``
    for the tokens and ``D = (1 - β) Attn(Q_pro, K_pro, V_pro) + β Attn(Q_pro, K, V)`` for the prompts (Eq. 5), which
    is not disposable here.

    Args:
        place: where it goes; D is the width of what the rows join.
        tokens: P.
    """

    spans_sites: ClassVar[bool] = True
