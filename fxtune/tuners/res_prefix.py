"""``res_prefix``: learned keys and values that tokens attend to, Res-Tuning (Jiang et al., 2023), Eq. 2, 3 and 7."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fxtune.tuners.attend import attend, check_heads
from fxtune.tuners.placement import Placement
from fxtune.tuners.registry import tuner
from fxtune.tuners.scale import ScaleKind, make_scale


@tuner("res_prefix")
class ResPrefix(nn.Module):
    """``s ⊙ Attn(x, K_pre, V_pre)``, no mask, logits over √head_dim; 2PD weights, and 0, 1, D or D + 1 of the scale.

    Args:
        place: where it goes; D is its width, its heads are those of the MHA in the same block.
        tokens: P.
        scale: s. A scalar and channel factors start at 1.
        init: of V_pre: `zero` (the untrained model stays bit-equal to the original) or `xavier`. K_pre is
            Xavier-uniform either way.
    """

    refuses: ClassVar[dict[str, str]] = {
        "mha": "on attention a prefix takes part in the softmax (the λ form of Eq. 3), which this version does not have"
    }

    def __init__(
        self,
        place: Placement,
        *,
        tokens: Annotated[int, Field(ge=1)] = 10,
        scale: ScaleKind = "none",
        init: Literal["zero", "xavier"] = "zero",
    ) -> None:
        super().__init__()
        check_heads(place, "res_prefix")
        self.heads = place.heads
        self.keys = nn.Parameter(torch.empty(tokens, place.width))
        self.values = nn.Parameter(torch.zeros(tokens, place.width))
        self.scale = make_scale(scale, place.width)
        nn.init.xavier_uniform_(self.keys)
        if init == "xavier":
            nn.init.xavier_uniform_(self.values)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) to what is added to the operation's output, (B, N, D)."""
        z: Tensor = attend(x.to(self.keys.dtype), self.keys, self.values, self.heads)
        z = self.scale(z)
        return z.to(x.dtype)
