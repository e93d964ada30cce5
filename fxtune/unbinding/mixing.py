"""The λ form: what attention gives, mixed with what the prefix gives."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fxtune.unbinding.precision import exact, no_autocast, wide


def mix(
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k_pre: Tensor,
    v_pre: Tensor,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """``(1 - λ) Attn(Q, K, V) + λ Attn(Q, K_pre, V_pre)``, ``λ = sigmoid(lse(s Q K_preᵀ) - lse(s Q Kᵀ))`` (Eq. 3, 5).

    Prefix keys have no mask and no bias, so a causal or any other mask is none of its concern. λ and the mixing are
    computed in `exact` precision, as what is mixed may cancel to much less than either part, and only differences of
    logits are exponentiated. Only the keys of the prefix are passed over.

    Args:
        out: B x H x N x dv, of the attention to the model's own keys.
        lse: B x H x N, the log-sum-exp of its logits; -inf where a query sees no key: there λ = 1.
        q: B x H x N x d, as the attention reads it.
        k_pre: 1 or B x Hkv x P x d, after k-norm.
        v_pre: 1 or B x Hkv x P x dv.
        scale: s, as in the attention itself; 1/√d by default.
        dropout_p: probability that a weight on the prefix is dropped; λ is that of all logits.

    Returns:
        The mixed output like `out` (with P = 0 it is `out`), and λ, B x H x N in float32 at least. Gradients flow
        through both.
    """
    if k_pre.shape[2] == 0:
        return out, torch.zeros_like(lse, dtype=wide(q.dtype))
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    with no_autocast(q):
        share, keep, lam, _ = shares(q, lse, k_pre, factor)
        pre = from_prefix(F.dropout(share, dropout_p), v_pre, q)
        mixed = (out * keep.unsqueeze(-1) + pre).to(out.dtype)
    return mixed, lam.to(wide(q.dtype))


def shares(q: Tensor, lse: Tensor, k_pre: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How a query's attention is shared out between the prefix and the model's own keys.

    Returns:
        λ times the weights on the prefix (as `prefix_logits` gives them), and B x H x N each: 1 - λ, λ, and the
        log-sum-exp of the prefix's logits.
    """
    logits = prefix_logits(q, k_pre, scale)
    top = logits.detach().amax(-2, keepdim=True)  # a constant to the gradient: it cancels
    weights = torch.exp(logits - top)
    total = weights.sum(-2, keepdim=True)
    # In this order: a sum of the largest logit and the rest would round to the precision of the largest.
    gap = (top - by_head(lse.unsqueeze(-1), k_pre).mT) + total.log()
    gate, rest, lse_pre = torch.sigmoid(gap), torch.sigmoid(-gap), top + total.log()
    lam, keep, lse_pre = (by_sample(x.mT, q, k_pre).squeeze(-1) for x in (gate, rest, lse_pre))
    return weights * (gate / total), keep, lam, lse_pre


# Products with a prefix run over one matrix a head, the rows of all samples below one another: as many small products
# as there are samples and heads would take five times as long.


def prefix_logits(q: Tensor, k_pre: Tensor, scale: float) -> Tensor:
    """``s K_pre Qᵀ`` in `exact` precision: heads x P x rows, in the order of `by_head`."""
    dtype = exact(q)
    return torch.bmm(for_queries(k_pre, q).to(dtype), by_head(q, k_pre).to(dtype).mT) * scale


def from_prefix(weights: Tensor, learned: Tensor, q: Tensor) -> Tensor:
    """``Wᵀ X`` of weights on the prefix and its keys or values: B x H x N x d."""
    return by_sample(torch.bmm(weights.mT, for_queries(learned, q).to(weights.dtype)), q, learned)


def by_head(x: Tensor, learned: Tensor) -> Tensor:
    """B x H x N x d to heads x rows x d: H x BN where one prefix serves all samples, else BH x N.

    No copy where the memory is B x N x H x d, as projections and kernels leave it."""
    return x.transpose(1, 2).flatten(0, 1).transpose(0, 1) if learned.shape[0] == 1 else x.flatten(0, 1)


def by_sample(rows: Tensor, like: Tensor, learned: Tensor) -> Tensor:
    """The way back, to the batch and heads of `like`."""
    if learned.shape[0] == 1:
        return torch.unflatten(rows.transpose(0, 1), 0, (like.shape[0], like.shape[2])).transpose(1, 2)
    return torch.unflatten(rows, 0, (like.shape[0], like.shape[1]))


def for_queries(learned: Tensor, q: Tensor) -> Tensor:
    """Keys or values of a prefix in the wide dtype: heads x P x d, one matrix for each query head."""
    groups = q.shape[1] // learned.shape[1]
    learned = learned.to(wide(q.dtype))
    return (learned if groups == 1 else learned.repeat_interleave(groups, dim=1)).flatten(0, 1)
