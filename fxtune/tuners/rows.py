"""Learned rows of a sequence, and the attention that they take part in (Res-Tuning, Eq. 4 and 5)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fxtune.tuners.attaching import attached
from fxtune.tuners.attend import scaled
from fxtune.unbinding import attention_with_lse, mix, prefix_attention, prompt_attention, unbound_attention


class RowsInSoftmax(nn.Module):
    """What becomes of prompt rows in an attention. In either form q (in self-attention), k and v end with them.

    Attributes:
        rows: P.
        stays: whether the rows go on behind the attention in the unbound form, too.
        scale: of what they change.
        watches: whether D is computed in the unbound form, and kept in both.
        disposable: D, the prompts' own rows of the result in the last call, B x H x P x d, if `watches`.
    """

    stays: bool = False
    watches: bool = False
    disposable: Tensor | None = None
    scale: nn.Module

    @property
    def rows(self) -> int:
        raise NotImplementedError

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
        """``(1 - λ) Attn(Q, K, V) + λ Attn(Q, K_pro, V_pro)``, and λ for the rows of x.

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
        disposable = None
        if query_rows and (self.stays or self.watches):
            seen = seen_by_prompts(mask)
            disposable, _ = unbound_attention(q_pro, k, v, k_pro, v_pro, mask=seen, scale=scale, dropout_p=p)
        self.disposable = disposable if self.watches else None
        if isinstance(self.scale, nn.Identity):
            mixed, lam = unbound_attention(q, k, v, k_pro, v_pro, mask=mask, causal=causal, scale=scale, dropout_p=p)
        else:
            out, lse = attention_with_lse(q, k, v, mask=mask, causal=causal, scale=scale, dropout_p=p)
            mixed, lam = mix(out, lse, q, k_pro, v_pro, scale=scale, dropout_p=p)
            mixed = scaled(self.scale, out, mixed)
        if self.stays and disposable is not None:
            mixed = torch.cat([mixed, disposable], dim=2)
        return mixed, lam.detach()

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
        disposable = None
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
        self.disposable = disposable if self.watches else None
        return mixed if disposable is None else torch.cat([mixed, disposable], dim=2)

    def _parted(self, rows: Tensor, prompts: bool = True) -> tuple[Tensor, Tensor]:
        """The model's own rows, and those of the prompts."""
        many = self.rows if prompts else 0
        own, last = torch.split(rows, [rows.shape[2] - many, many], dim=2)
        return own, last


class PromptRows(RowsInSoftmax):
    """A tuner whose `prompts`, P x D, join a sequence behind its last token."""

    joins_rows: ClassVar[bool] = True

    prompts: nn.Parameter

    @property
    def rows(self) -> int:
        return self.prompts.shape[0]


class _Through(RowsInSoftmax):
    """Rows that were put in further up, and go on."""

    stays = True

    def __init__(self, rows: int) -> None:
        super().__init__()
        self._rows = rows
        self.scale = nn.Identity()

    @property
    def rows(self) -> int:
        return self._rows


def rows_through(rows: int, method: str) -> nn.Module:
    """A module without weights for an attention through which `rows` prompt rows of another module's run."""
    module = _Through(rows)
    return attached(module, method)


def seen_by_prompts(mask: Tensor | None) -> Tensor | None:
    """The mask of prompt rows for the model's own keys, one row for all of them.

    A key that all queries see alike, such as padding, they see so too; any other they see without bias. Values decide:
    models write the row of a padding mask out for every query.
    """
    if mask is None or mask.dim() < 2 or mask.shape[-2] == 1:
        return mask
    first = mask[..., :1, :]
    alike = (mask == first).all(-2, keepdim=True)
    return first | ~alike if mask.dtype is torch.bool else first.masked_fill(~alike, 0.0)
