"""In which precision attention is computed."""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of logits, log-sum-exps and gates: float32 at least."""
    return torch.float64 if dtype is torch.float64 else torch.float32


LARGE = 16.0
"""Logits up to which float32 rounds to a few eps of the output, whatever the order of a product's sums."""


def exact(q: Tensor) -> torch.dtype:
    """The dtype of log-sum-exps and of the logits on a prefix: float64 for float32 on a CPU, where they cost little.

    In float32 both forms are as good as their logits, which matrix products of different shapes do not round alike.
    With these exact, the unbound form has left the errors of the model's own logits, which are as exact where they are
    `large`. Not in an exported program, which may run anywhere.
    """
    cheap = q.device.type == "cpu" and not torch.compiler.is_exporting()
    return torch.float64 if q.dtype is torch.float32 and cheap else wide(q.dtype)


def large(q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> bool:
    """Whether logits that matter to a softmax may be beyond `LARGE`.

    Products are bounded by the Cauchy-Schwarz inequality; of an additive mask each row's largest value counts, for
    keys that are far below it have no weight.
    """
    longest = (float(torch.linalg.vector_norm(x, dim=-1).amax()) for x in (q, k))
    if math.prod(longest) * abs(scale) > LARGE:
        return True
    if mask is None or mask.dtype is torch.bool:
        return False
    top = mask.amax(-1)
    return bool(((top.abs() > LARGE) & (top > torch.finfo(mask.dtype).min)).any())


def as_autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Tensors cast as autocast casts what goes into `scaled_dot_product_attention`; unchanged where it is off."""
    device = _device(*tensors)
    if not _autocast(device):
        return tensors
    to = torch.get_autocast_dtype(device)
    return tuple(
        t.to(to) if t is not None and t.dtype.is_floating_point and t.dtype != torch.float64 else t for t in tensors
    )


def no_autocast(like: Tensor) -> contextlib.AbstractContextManager[object]:
    """A context without autocast: what is written in float32 stays so."""
    device = like.device.type
    return torch.autocast(device, enabled=False) if _autocast(device) else contextlib.nullcontext()


def _device(*tensors: Tensor | None) -> str:
    return next(t.device.type for t in tensors if t is not None)


def _autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
