"""Attention that also gives the log-sum-exp of its logits, with gradients through both."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fxtune.unbinding.kernels import Kernel, kernel_for
from fxtune.unbinding.masks import HIDDEN, additive, dead_rows, four_axes, with_causal
from fxtune.unbinding.precision import as_autocast, exact, large, no_autocast, wide


def attention_with_lse(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """``softmax(s Q Kᵀ + mask) V`` and ``logsumexp(s Q Kᵀ + mask)`` for each head and query.

    ======  ====================================================  ==============================================
    device  attention                                             path
    ======  ====================================================  ==============================================
    cpu     every float type, any mask or none, causal or not     the CPU's flash kernel
    cuda    half precision, no mask, causal if N = S, d % 8 = 0,  flash kernel
            d ≤ 248
    cuda    float32, half precision; a mask or causal with        memory-efficient kernel (not where deterministic
            N = S, not both; d % 8 = 0                            algorithms are asked for: its backward is not)
    any     dropout; a mask that needs a gradient; v wider or     plain: logits written out, in float32 at least
            narrower than q; whatever else is left
    ======  ====================================================  ==============================================

    In a kernel the log-sum-exp comes with the output, without a second pass over the keys. It works under autocast
    (which casts as for `scaled_dot_product_attention`), on meta and fake tensors, and in `torch.compile` without graph
    breaks. `torch.export` gets the plain path: an exported program has operators of PyTorch's alone.

    On a CPU, float32 attention whose logits may be beyond 16 is computed in float64 by the same kernel, forward alone,
    in up to three times its time: of larger logits float32 rounds away more than the few eps by which this form may be
    worse than another. The plain path keeps to float32.

    Args:
        q: B x H x N x d.
        k: B x Hkv x S x d; H is a multiple of Hkv, and query heads in a row share a key head.
        v: B x Hkv x S x dv.
        mask: broadcastable to B x H x N x S: boolean, True where a query sees a key, or added to the logits.
        causal: query i sees the keys 0 to i, and of those only what `mask` leaves.
        scale: s; 1/√d by default.
        dropout_p: probability that a weight is dropped; the log-sum-exp is that of all logits.

    Returns:
        The output, B x H x N x dv in q's dtype, and the log-sum-exp, B x H x N in float32 at least (in float64 for
        float32 on a CPU). A query that sees no key has the output 0 and the log-sum-exp -inf, without NaN in any
        gradient.
    """
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    q, k, v, mask = as_autocast(q, k, v, mask)  # type: ignore[assignment]
    if mask is not None:
        mask = four_axes(mask)
    if runs_fused(q, k, v, mask, causal, dropout_p):
        out, lse = _attention(q, k, v, mask, causal, factor)
        return out, lse
    return _plain(q, k, v, mask, causal, factor, dropout_p)


def runs_fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, dropout_p: float) -> bool:
    """Whether a kernel computes it. None draws dropout alike on every device, or gives the gradient of a mask, and an
    exported program must run where the operators of this package are not."""
    if dropout_p != 0.0 or torch.compiler.is_exporting():
        return False
    wants_gradient = mask is not None and mask.requires_grad and torch.is_grad_enabled()
    return not wants_gradient and kernel_for(q, k, v, mask, causal) is not None


def _plain(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float, dropout_p: float
) -> tuple[Tensor, Tensor]:
    dtype, groups = wide(q.dtype), q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    mask = with_causal(mask, causal, q.shape[2], k.shape[2], q.device)
    with no_autocast(q):
        logits = (q.to(dtype) * scale) @ k.to(dtype).mT
        if mask is not None:
            logits = logits + additive(mask, dtype)
        # The largest logit is a constant to the gradient: it cancels. A query that sees nothing has none.
        top = F.pad(logits.detach(), (0, 1), value=torch.finfo(dtype).min).amax(-1, keepdim=True)
        weights = torch.exp(logits - top)
        total = weights.sum(-1, keepdim=True)
        dead = total == 0
        total = total.masked_fill(dead, 1.0)
        lse = (top + total.log()).masked_fill(dead, HIDDEN).squeeze(-1)
        out = F.dropout(weights / total, dropout_p) @ v.to(dtype)
    return out.to(q.dtype), lse.to(exact(q))


# ---- the fused path as one operator ----------------------------------------------------------------------------------


@torch.library.custom_op("fxtune::attention_with_lse", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    out, lse = fused_forward(q, k, v, mask, causal, scale)
    return out.to(q.dtype), lse


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    return heads_inside(q, v.shape[-1]), q.new_empty(q.shape[:3], dtype=exact(q))


@torch.library.custom_op("fxtune::attention_with_lse_backward", mutates_args=())
def _attention_backward(
    grad: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return fused_backward(grad, grad_lse, q, k, v, mask, out, lse, causal, scale)


@_attention_backward.register_fake
def _(
    grad: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return heads_inside(q), heads_inside(k), heads_inside(v)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, ctx.causal, ctx.scale = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, mask, *output)


def _gradients(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, mask, out, lse = ctx.saved_tensors
    if grad is None:
        grad = torch.zeros_like(out)
    return *_attention_backward(grad, grad_lse, q, k, v, mask, out, lse, ctx.causal, ctx.scale), None, None, None


_attention.register_autograd(_gradients, setup_context=_setup)


# ---- calling a kernel ------------------------------------------------------------------------------------------------


def fused_forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp by the kernel that takes this attention; rows that see nothing as the kernels should.

    The output is in the dtype in which it was computed: who goes on with it rounds once, at the end.
    """
    if q.numel() == 0 or k.shape[2] == 0:  # kernels divide by the number of keys
        return heads_inside(q, v.shape[-1]).zero_(), q.new_full(q.shape[:3], HIDDEN, dtype=exact(q))
    out, lse = _by_kernel(q, k, v, mask, causal, scale)
    dead = dead_rows(mask, causal, q.shape[2], k.shape[2])
    if dead is not None and (dead.device.type != "cpu" or dead.any()):  # elsewhere asking would wait for the device
        out, lse = out.masked_fill(dead.unsqueeze(-1), 0.0), lse.masked_fill(dead, HIDDEN)
    return as_heads_inside(out), lse.contiguous()


def _by_kernel(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp as a kernel gives them, in float64 where float32 would round the logits too coarsely."""
    coarse = exact(q) is not wide(q.dtype) and large(q, k, mask, scale)
    dtype, bias = exact(q) if coarse else q.dtype, _bias(mask, q)
    read_q, read_k, read_v = (_dense(x).to(dtype) for x in (q, k, v))
    added = None if bias is None else bias.to(dtype)
    out, lse = _kernel(q, k, v, mask, causal).forward(read_q, read_k, read_v, added, causal, scale)
    return out, lse.to(exact(q))


def fused_backward(
    grad: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v by the kernel's own backward.

    ``dS = P ∘ (dO Vᵀ - rowsum(dO ∘ O) + d_lse)``: the log-sum-exp's gradient is one column more, ``[dO, d_lse]`` on
    ``[V, 1]`` and ``[O, 0]``; q and k get a column of zeros where the kernel wants them as wide.
    """
    if q.numel() == 0 or k.shape[2] == 0:
        return heads_inside(q).zero_(), heads_inside(k).zero_(), heads_inside(v).zero_()
    kernel = _kernel(q, k, v, mask, causal)
    lse = lse.to(wide(q.dtype))
    lse = lse.masked_fill(lse == HIDDEN, -HIDDEN)  # exp(-inf - inf) = 0: no NaN where nothing is seen
    width = v.shape[-1]
    if grad_lse is not None:
        more = (0, kernel.columns)
        grad, out, v = F.pad(grad, more), F.pad(out, more), F.pad(v, more)
        grad[..., width], v[..., width] = grad_lse, 1.0
        if kernel.alike:
            q, k = F.pad(q, more), F.pad(k, more)
    read = (_dense(grad), _dense(q), _dense(k), _dense(v))
    dq, dk, dv = kernel.backward(*read, _bias(mask, q), _dense(out), lse, causal, scale)
    if grad_lse is not None and kernel.alike:
        dq, dk = dq[..., : -kernel.columns], dk[..., : -kernel.columns]
    return as_heads_inside(dq), as_heads_inside(dk), as_heads_inside(dv[..., :width])


def _kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Kernel:
    kernel = kernel_for(q, k, v, mask, causal)
    assert kernel is not None
    return kernel


def _bias(mask: Tensor | None, q: Tensor) -> Tensor | None:
    return None if mask is None else additive(mask, q.dtype)


def _dense(x: Tensor) -> Tensor:
    """Kernels read heads whose channels lie side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def heads_inside(like: Tensor, width: int | None = None) -> Tensor:
    """An empty B x H x N x d whose memory is B x N x H x d, the layout in which kernels write and projections read."""
    batch, heads, tokens, own = like.shape
    return like.new_empty((batch, tokens, heads, own if width is None else width)).transpose(1, 2)


def as_heads_inside(x: Tensor) -> Tensor:
    """x in that layout; not copied where it has it."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)
