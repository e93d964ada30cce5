"""Prefix and prompt at attention as their own papers have them: more keys, more rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fxtune.unbinding.masks import additive, four_axes, with_causal
from fxtune.unbinding.precision import no_autocast, wide


def prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_pre: Tensor,
    v_pre: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """``Attn(Q, [K_pre; K], [V_pre; V])`` (prefix tuning, Li and Liang 2021; Res-Tuning, Eq. 2).

    Arguments as in `unbound_attention`. The mask gets columns for the prefix, which every query sees, without bias; a
    causal mask is moved right by P.
    """
    hidden = with_causal(mask, causal, q.shape[2], k.shape[2], q.device)
    keys, values = (torch.cat([_batch(pre, own), own], dim=2) for pre, own in ((k_pre, k), (v_pre, v)))
    return F.scaled_dot_product_attention(
        q,
        keys,
        values,
        attn_mask=_with_columns(hidden, k.shape[2], before=k_pre.shape[2]),
        dropout_p=dropout_p,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def prefix_share(
    q: Tensor,
    k: Tensor,
    k_pre: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """λ, B x H x N in float32 at least: what attention gives whose values are 1 on the prefix and 0 elsewhere.

    Where nobody reads it, it is dead code to a compiler: a cast behind the attention would check, and so keep, it.
    """
    dtype = wide(q.dtype)
    with no_autocast(q):
        q, k, k_pre = (x.to(dtype) for x in (q, k, k_pre))
        bias = mask if mask is None or mask.dtype is torch.bool else mask.to(dtype)
        ones, zeros = torch.ones_like(k_pre), torch.zeros_like(k)
        return prefix_attention(q, k, zeros, k_pre, ones, mask=bias, causal=causal, scale=scale)[..., 0]


def prompt_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_pro: Tensor,
    k_pro: Tensor,
    v_pro: Tensor,
    *,
    mask: Tensor | None = None,
    mask_pro: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attention over the sequence ``[x; x_pro]`` (visual prompt tuning, Jia et al. 2022; Res-Tuning, Eq. 4).

    Args:
        q, k, v: of the rows of x; the others as in `unbound_attention`.
        q_pro: 1 or B x H x P x d, of the prompt rows; likewise k_pro and v_pro with Hkv heads.
        mask: for the rows of x and the model's own keys. The prompts' columns are seen by every row, without bias.
        mask_pro: for the prompt rows and the model's own keys, of the same kind as `mask`.
        causal: for the rows of x.

    Returns:
        The rows of x, and the disposable rows D of the prompts.
    """
    keys, values = (torch.cat([own, _batch(pro, own)], dim=2) for own, pro in ((k, k_pro), (v, v_pro)))
    out = _attend(
        torch.cat([q, _batch(q_pro, q)], dim=2),
        keys,
        values,
        prompts=(q_pro.shape[2], k_pro.shape[2]),
        masks=(mask, mask_pro),
        causal=causal,
        scale=scale,
        dropout_p=dropout_p,
    )
    return out[:, :, : q.shape[2]], out[:, :, q.shape[2] :]


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    prompts: tuple[int, int],
    masks: tuple[Tensor | None, Tensor | None],
    causal: bool,
    scale: float | None,
    dropout_p: float,
) -> Tensor:
    """Attention whose last queries and keys are `prompts`; one mask for the other queries and one for the prompts."""
    queries, keys = q.shape[2] - prompts[0], k.shape[2] - prompts[1]
    upper = _with_columns(with_causal(masks[0], causal, queries, keys, q.device), keys, after=prompts[1])
    if masks[0] is masks[1] and not causal and (upper is None or upper.shape[2] == 1):
        mask = upper
    else:
        lower = _with_columns(masks[1], keys, after=prompts[1])
        mask = _stacked(upper, lower, queries, prompts[0], k.shape[2])
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout_p, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def _batch(learned: Tensor, like: Tensor) -> Tensor:
    """Learned rows for every sample and, where the model has repeated its keys already, for every head of them."""
    repeated = learned.repeat_interleave(like.shape[1] // learned.shape[1], dim=1)
    return repeated.to(like.dtype).expand(like.shape[0], -1, -1, -1)


def _with_columns(mask: Tensor | None, keys: int, *, before: int = 0, after: int = 0) -> Tensor | None:
    """The mask with columns that every query sees; None where it hides nothing."""
    if mask is None:
        return None
    mask = four_axes(mask).expand(-1, -1, -1, keys)
    return F.pad(mask, (before, after), value=mask.dtype is torch.bool)


def _stacked(upper: Tensor | None, lower: Tensor | None, queries: int, prompts: int, keys: int) -> Tensor | None:
    """One mask for the rows of x and those of the prompts below them; a missing one hides nothing."""
    present = next((mask for mask in (upper, lower) if mask is not None), None)
    if present is None:
        return None
    parts = []
    for mask, rows in ((upper, queries), (lower, prompts)):
        if mask is None:
            mask = present.new_full((1, 1, 1, keys), present.dtype is torch.bool)
        parts.append(mask.expand(-1, -1, rows, -1))
    shape = [max(sizes) for sizes in zip(*(part.shape[:2] for part in parts), strict=True)]
    if len({part.dtype for part in parts}) > 1:
        wide = next(part.dtype for part in parts if part.dtype is not torch.bool)
        parts = [additive(part, wide) for part in parts]
    return torch.cat([part.expand(*shape, -1, -1) for part in parts], dim=2)
