"""Learned rows of a sequence, and the attention that they take part in (Res-Tuning, Eq. 4 and 5)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fxtune.tuners.attend import scaled
from fxtune.unbinding import attention_with_lse, mix, prefix_attention, prompt_attention, unbound_attention


class PromptRows(nn.Module):
    """A tuner whose `prompts`, P x D, join a sequence behind its last token.

    The model's own weights make queries, keys and values of them; here is what happens in the attention. In either
    form q (in self-attention), k and v end with the rows of the prompts.
    """

    joins_rows: ClassVar[bool] = True

    prompts: nn.Parameter
    scale: nn.Module
    disposable: Tensor | None = None
    """What the prompts' own rows of the attention's result were in the last call (D, B x H x P x d), if `watches`."""
    watches: bool = False
    """Whether D is computed in the unbound form, and kept in both."""

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        *,
        causal: bool,
        scale: float | None,
        dropout: float,
        query_rows: bool,
    ) -> tuple[Tensor, Tensor]:
        """``(1 - λ) Attn(Q, K, V) + λ Attn(Q, K_pro, V_pro)`` for the rows of x, and λ.

        Args:
            q: B x H x (N + P) x d; B x H x N x d where `query_rows` is False.
            k, v: B x Hkv x (S + P) x d.
            mask: of the attention without prompts.
            causal: for the rows of x.
            scale: of the logits; 1/√d where None.
            dropout: probability in training mode.
            query_rows: whether q ends with rows of the prompts.
        """
        p = dropout if self.training else 0.0
        (q, q_pro), (k, k_pro), (v, v_pro) = self._parted(q, query_rows), self._parted(k), self._parted(v)
        self.disposable = None
        if self.watches and query_rows:
            self.disposable, _ = unbound_attention(q_pro, k, v, k_pro, v_pro, mask=seen_by_prompts(mask), scale=scale)
        if isinstance(self.scale, nn.Identity):
            return unbound_attention(q, k, v, k_pro, v_pro, mask=mask, causal=causal, scale=scale, dropout_p=p)
        out, lse = attention_with_lse(q, k, v, mask=mask, causal=causal, scale=scale, dropout_p=p)
        mixed, lam = mix(out, lse, q, k_pro, v_pro, scale=scale, dropout_p=p)
        return scaled(self.scale, out, mixed), lam.detach()

    def attend_original(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        *,
        causal: bool,
        scale: float | None,
        dropout: float,
        query_rows: bool,
    ) -> Tensor:
        """Attention of all rows to all rows; the result ends with those of the prompts where q does."""
        p = dropout if self.training else 0.0
        (q, q_pro), (k, k_pro), (v, v_pro) = self._parted(q, query_rows), self._parted(k), self._parted(v)
        if query_rows:
            mixed, disposable = prompt_attention(
                *(q, k, v, q_pro, k_pro, v_pro),
                mask=mask, mask_pro=seen_by_prompts(mask), causal=causal, scale=scale, dropout_p=p,
            )  # fmt: skip
        else:
            mixed = prefix_attention(q, k, v, k_pro, v_pro, mask=mask, causal=causal, scale=scale, dropout_p=p)
        if not isinstance(self.scale, nn.Identity):
            out, _ = attention_with_lse(q, k, v, mask=mask, causal=causal, scale=scale, dropout_p=p)
            mixed = scaled(self.scale, out, mixed)
        if not query_rows:
            return mixed
        self.disposable = disposable if self.watches else None
        return torch.cat([mixed, disposable], dim=2)

    def _parted(self, rows: Tensor, prompts: bool = True) -> tuple[Tensor, Tensor]:
        """The model's own rows, and those of the prompts."""
        many = self.prompts.shape[0] if prompts else 0
        own, last = torch.split(rows, [rows.shape[2] - many, many], dim=2)
        return own, last


def seen_by_prompts(mask: Tensor | None) -> Tensor | None:
    """What prompt rows see of the model's own keys: what a mask leaves that is the same for all queries, else all."""
    if mask is None or mask.dim() < 2:
        return mask
    if mask.shape[-2] == 1:
        return mask
    return mask[..., :1, :] if mask.stride(-2) == 0 else None
