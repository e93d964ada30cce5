"""``res_prompt``: learned tokens that the others attend to, Res-Tuning (Jiang et al., 2023), Eq. 4, 5 and 7."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from fxtune.tuners.attend import attend, check_heads
from fxtune.tuners.placement import Placement
from fxtune.tuners.registry import tuner
from fxtune.tuners.scale import ScaleKind, make_scale


def _not_zero(init: Any) -> Any:
    if init == "zero":
        raise ValueError(
            "'xavier': prompts that start equal stay equal; for an identity start there is `scale: scalar`, from 0 on"
        )
    return init


@tuner("res_prompt")
class ResPrompt(nn.Module):
    """``s ⊙ Attn(x, x_pro, x_pro)``, no mask, logits over √head_dim; PD weights, and 0, 1, D or D + 1 of the scale.

    Args:
        place: where it goes; D is its width, its heads are those of the MHA in the same block.
        tokens: P.
        scale: s. A scalar and channel factors start at 0, which makes the untrained model bit-equal to the original.
        init: of x_pro: Xavier-uniform. Zero is refused: rows that start equal would stay equal.
    """

    refuses: ClassVar[dict[str, str]] = {
        "mha": "on attention a prompt takes part in the softmax (the λ form of Eq. 5), which this version does not have"
    }

    def __init__(
        self,
        place: Placement,
        *,
        tokens: Annotated[int, Field(ge=1)] = 10,
        scale: ScaleKind = "none",
        init: Annotated[Literal["xavier"], BeforeValidator(_not_zero)] = "xavier",
    ) -> None:
        super().__init__()
        check_heads(place, "res_prompt")
        self.heads = place.heads
        self.prompts = nn.Parameter(torch.empty(tokens, place.width))
        self.scale = make_scale(scale, place.width, start=0.0)
        nn.init.xavier_uniform_(self.prompts)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) to what is added to the operation's output, (B, N, D)."""
        z: Tensor = attend(x.to(self.prompts.dtype), self.prompts, self.prompts, self.heads)
        z = self.scale(z)
        return z.to(x.dtype)
