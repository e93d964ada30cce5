"""Attention with a prefix in its unbound form, at the cost of the original one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fxtune.unbinding.attention import (
    as_heads_inside,
    attention_with_lse,
    fused_backward,
    fused_forward,
    heads_inside,
    runs_fused,
)
from fxtune.unbinding.masks import four_axes
from fxtune.unbinding.mixing import by_head, for_queries, from_prefix, mix, shares
from fxtune.unbinding.original import prefix_attention, prefix_share
from fxtune.unbinding.precision import as_autocast, no_autocast, wide


def unbound_attention(
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
) -> tuple[Tensor, Tensor]:
    """``mix(*attention_with_lse(Q, K, V), Q, K_pre, V_pre)`` (Res-Tuning, Eq. 3 and 5), with one short backward.

    Arguments as in `attention_with_lse` and `mix`, dropout on either part. Where `attention_with_lse` takes a kernel,
    so does this, and the log-sum-exp needs no gradient of its own: the weights on the model's keys are
    ``(1 - λ) P = exp(S - L)`` with ``L = logaddexp(lse, lse_pre)``, so that

        dS = (1 - λ) P ∘ (dM Vᵀ - rowsum(dM ∘ M))

    is the kernel's own backward, given the mixed output M and L in place of its output and its log-sum-exp.

    `torch.export` gets the original form, which is one attention by the operator that every runtime has a kernel for.

    Returns:
        The mixed output, B x H x N x dv in q's dtype, and λ, B x H x N in float32 at least, to be watched: no gradient
        flows through it.

    The rows of prompts are the same form: ``D = (1 - β) Attn(Q_pro, K_pro, V_pro) + β Attn(Q_pro, K, V)`` is
    ``unbound_attention(q_pro, k, v, k_pro, v_pro)``, with β = 1 - λ.
    """
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    q, k, v, mask = as_autocast(q, k, v, mask)  # type: ignore[assignment]
    if mask is not None:
        mask = four_axes(mask)
    if torch.compiler.is_exporting():
        mixed = prefix_attention(q, k, v, k_pre, v_pre, mask=mask, causal=causal, scale=factor, dropout_p=dropout_p)
        return mixed, prefix_share(q, k, k_pre, mask=mask, causal=causal, scale=factor).detach()
    if k_pre.shape[2] and runs_fused(q, k, v, mask, causal, dropout_p):
        mixed, lam, *_ = _unbound(q, k, v, k_pre, v_pre, mask, causal, factor)
        return mixed, lam.detach()
    out, lse = attention_with_lse(q, k, v, mask=mask, causal=causal, scale=factor, dropout_p=dropout_p)
    mixed, lam = mix(out, lse, q, k_pre, v_pre, scale=factor, dropout_p=dropout_p)
    return mixed, lam.detach()


@torch.library.custom_op("fxtune::unbound_attention", mutates_args=())
def _unbound(
    q: Tensor, k: Tensor, v: Tensor, k_pre: Tensor, v_pre: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """M, λ, L, and λ times the weights on the prefix, heads x P x rows."""
    with no_autocast(q):
        out, lse = fused_forward(q, k, v, mask, causal, scale)
        share, keep, lam, lse_pre = shares(q, lse, k_pre, scale)
        kept = out.to(keep.dtype)
        torch.addcmul(from_prefix(share, v_pre, q), kept, keep.unsqueeze(-1), out=kept)
        mixed = kept.to(q.dtype)
        both = torch.logaddexp(lse, lse_pre)
    lam, both, share = (x.to(wide(q.dtype)).contiguous() for x in (lam, both, share))
    return as_heads_inside(mixed), lam, both, share


@_unbound.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, k_pre: Tensor, v_pre: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, queries, _ = q.shape
    lam = q.new_empty((batch, heads, queries), dtype=wide(q.dtype))
    matrices = (heads, batch * queries) if k_pre.shape[0] == 1 else (batch * heads, queries)
    share = lam.new_empty((matrices[0], k_pre.shape[2], matrices[1]))
    return heads_inside(q, v.shape[-1]), lam, torch.empty_like(lam), share


@torch.library.custom_op("fxtune::unbound_attention_backward", mutates_args=())
def _unbound_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_pre: Tensor,
    v_pre: Tensor,
    mask: Tensor | None,
    mixed: Tensor,
    lse: Tensor,
    share: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    with no_autocast(q):
        dq, dk, dv = fused_backward(grad, None, q, k, v, mask, mixed, lse, causal, scale)
        # The same over the prefix's few keys, whose weights are `share`.
        rows = by_head(grad, k_pre).to(share.dtype)
        inner = by_head((grad.to(share.dtype) * mixed).sum(-1, keepdim=True), k_pre).mT
        logits = share * (torch.bmm(for_queries(v_pre, q), rows.mT) - inner) * scale
        dq.add_(from_prefix(logits, k_pre, q))
        dk_pre = _ungrouped(logits @ by_head(q, k_pre).to(share.dtype), k_pre)
    return dq, dk, dv, dk_pre, _ungrouped(share @ rows, v_pre)


@_unbound_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_pre: Tensor,
    v_pre: Tensor,
    mask: Tensor | None,
    mixed: Tensor,
    lse: Tensor,
    share: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = torch.contiguous_format
    prefix = (torch.empty_like(k_pre, memory_format=like), torch.empty_like(v_pre, memory_format=like))
    return heads_inside(q), heads_inside(k), heads_inside(v), *prefix


def _ungrouped(grad: Tensor, like: Tensor) -> Tensor:
    """The gradient of `like` from that of its matrices for each query head."""
    return torch.unflatten(grad, 0, (like.shape[0], like.shape[1], -1)).sum(2).to(like.dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, k_pre, v_pre, mask, ctx.causal, ctx.scale = inputs
    mixed, _, lse, share = output
    ctx.save_for_backward(q, k, v, k_pre, v_pre, mask, mixed, lse, share)


def _gradients(ctx: Any, grad: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
    return *_unbound_backward(grad, *ctx.saved_tensors, ctx.causal, ctx.scale), None, None, None


_unbound.register_autograd(_gradients, setup_context=_setup)
