"""``res_prompt``: learned tokens that the others attend to, Res-Tuning (Jiang et al., 2023), Eq. 4, 5 and 7."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from fxtune.tuners.attend import attend, check_heads
from fxtune.tuners.placement import Placement
from fxtune.tuners.registry import tuner
from fxtune.tuners.rows import PromptRows
from fxtune.tuners.scale import ScaleKind, make_scale, scaled_rows


def _not_zero(init: Any) -> Any:
    if init == "zero":
        raise ValueError(
            "'xavier': prompts that start equal stay equal; for an identity start there is `scale: scalar`, from 0 on"
        )
    return init


@tuner("res_prompt")
class ResPrompt(PromptRows):
    """P learned tokens; PD weights, and 0, 1, D or D + 1 of the scale.

    On an MHA they join its context (which is its input, in self-attention) and take part in its softmax. The original
    form is attention over ``[x; x_pro]``, whose prompt rows are thrown away (Eq. 4); the unbound one
    ``(1 - λ) Attn(Q, K, V) + λ Attn(Q, K_pro, V_pro)`` with ``K_pro = x_pro W_k + b_k``, V_pro likewise (Eq. 5). Their
    keys pass the k-norm, are not rotated, have no bias and are seen by every query.

    Beside any other operation: ``s ⊙ Attn(x, x_pro, x_pro)`` (Eq. 7), no mask, logits over √head_dim; the heads are
    those of the MHA in the same block.

    Args:
        place: where it goes.
        tokens: P.
        scale: s. A scalar and channel factors start at 0, which makes the untrained model equal to the original (on an
            MHA bit-equal where the model calls the fused operator); there it scales what the prompts change.
        init: of x_pro: Xavier-uniform. Zero is refused: rows that start equal would stay equal.

    Raises:
        RuleError: the width does not divide into the heads.
    """

    narrows: ClassVar[dict[str, dict[str, int | None]]] = {"tokens": {"prompts": 0}}

    def __init__(
        self,
        place: Placement,
        *,
        tokens: Annotated[int, Field(ge=0)] = 10,
        scale: ScaleKind = "none",
        init: Annotated[Literal["xavier"], BeforeValidator(_not_zero)] = "xavier",
    ) -> None:
        super().__init__()
        if not place.head_dim:
            check_heads(place, "res_prompt")
        self.heads = place.heads
        self.prompts = nn.Parameter(torch.empty(tokens, place.width_in))
        self.scale = make_scale(scale, place.mixed_width, start=0.0)
        nn.init.xavier_uniform_(self.prompts)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) to what is added to the operation's output, (B, N, D)."""
        own = x.to(self.prompts.dtype)
        z = scaled_rows(self.scale, lambda values: attend(own, self.prompts, values, self.heads), self.prompts)
        return z.to(x.dtype)
