"""``res_prefix``: learned keys and values that tokens attend to, Res-Tuning (Jiang et al., 2023), Eq. 2, 3 and 7."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fxtune.errors import RuleError
from fxtune.tuners.attend import attend, check_heads, scaled
from fxtune.tuners.placement import Placement
from fxtune.tuners.registry import tuner
from fxtune.tuners.scale import ScaleKind, make_scale, scaled_rows
from fxtune.unbinding import attention_with_lse, mix, prefix_attention, unbound_attention


@tuner("res_prefix")
class ResPrefix(nn.Module):
    """Learned keys and values, P of each.

    On an MHA they take part in its softmax (prefix tuning, Li and Liang 2021). The original form is
    ``Attn(Q, [K_pre; K], [V_pre; V])`` (Eq. 2), the unbound one ``(1 - λ) Attn(Q, K, V) + λ Attn(Q, K_pre, V_pre)``
    (Eq. 3). K_pre and V_pre are P x (kv_heads · head_dim), enter after k-norm and rotary embedding, have no bias and
    are seen by every query.

    Beside any other operation: ``s ⊙ Attn(x, K_pre, V_pre)`` (Eq. 7), no mask, logits over √head_dim, 2PD weights; D
    is the width, the heads are those of the MHA in the same block.

    Args:
        place: where it goes.
        tokens: P.
        scale: s, 0, 1, D or D + 1 weights. On an MHA it scales what the prefix changes: with M the mixture and O the
            attention without prefix ``O + s ⊙ (M - O)``, where a scalar and channel factors start at 0, which makes
            the untrained model equal to the original (bit-equal where the model calls the fused operator). Elsewhere
            they start at 1.
        init: of V_pre: `zero` (the untrained model stays bit-equal to the original; the default beside an operation)
            or `xavier` (the default on an MHA, where zero values would still take their share of the softmax). K_pre
            is Xavier-uniform either way.

    Raises:
        RuleError: `init: zero` on an MHA; or the width does not divide into the heads.
    """

    narrows: ClassVar[dict[str, dict[str, int | None]]] = {"tokens": {"keys": 0, "values": 0}}

    def __init__(
        self,
        place: Placement,
        *,
        tokens: Annotated[int, Field(ge=0)] = 10,
        scale: ScaleKind = "none",
        init: Literal["zero", "xavier"] | None = None,
    ) -> None:
        super().__init__()
        in_softmax = place.head_dim > 0
        if in_softmax and init == "zero":
            raise _no_identity()
        if not in_softmax:
            check_heads(place, "res_prefix")
        self.heads = place.kv_heads if in_softmax else place.heads
        width = place.kv_heads * place.head_dim if in_softmax else place.width
        self.keys = nn.Parameter(torch.empty(tokens, width))
        self.values = nn.Parameter(torch.zeros(tokens, width))
        self.scale = make_scale(scale, place.mixed_width, start=0.0 if in_softmax else 1.0)
        nn.init.xavier_uniform_(self.keys)
        if in_softmax or init == "xavier":
            nn.init.xavier_uniform_(self.values)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) to what is added to the operation's output, (B, N, D)."""
        own = x.to(self.keys.dtype)
        z = scaled_rows(self.scale, lambda values: attend(own, self.keys, values, self.heads), self.values)
        return z.to(x.dtype)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool, scale: float | None, dropout: float
    ) -> tuple[Tensor, Tensor]:
        """The mixture, B x H x N x d, and λ, B x H x N; q, k, v, mask as in `fxtune.unbinding.attention_with_lse`."""
        pre = self._heads()
        p = dropout if self.training else 0.0
        if isinstance(self.scale, nn.Identity):
            return unbound_attention(q, k, v, *pre, mask=mask, causal=causal, scale=scale, dropout_p=p)
        out, lse = attention_with_lse(q, k, v, mask=mask, causal=causal, scale=scale, dropout_p=p)
        mixed, lam = mix(out, lse, q, *pre, scale=scale, dropout_p=p)
        return scaled(self.scale, out, mixed), lam.detach()

    def attend_original(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool, scale: float | None, dropout: float
    ) -> Tensor:
        """The same with the prefix among the keys."""
        p = dropout if self.training else 0.0
        mixed = prefix_attention(q, k, v, *self._heads(), mask=mask, causal=causal, scale=scale, dropout_p=p)
        if isinstance(self.scale, nn.Identity):
            return mixed
        out, _ = attention_with_lse(q, k, v, mask=mask, causal=causal, scale=scale, dropout_p=p)
        return scaled(self.scale, out, mixed)

    def _heads(self) -> tuple[Tensor, Tensor]:
        """K_pre and V_pre, 1 x kv_heads x P x head_dim."""
        keys, values = (
            torch.unflatten(rows, -1, (self.heads, -1)).transpose(0, 1).unsqueeze(0)
            for rows in (self.keys, self.values)
        )
        return keys, values


def _no_identity() -> RuleError:
    return RuleError(
        "The tuner 'res_prefix' has no zero start on an attention",
        found="init: zero; keys take their share of the softmax whatever their values are",
        fix="write `scale: scalar`, which starts at 0 and leaves the untrained model as it was",
    )
