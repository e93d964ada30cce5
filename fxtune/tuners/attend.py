"""Attention of tokens to a few learned rows, without projections or a mask."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxtune.errors import RuleError
from fxtune.tuners.placement import Placement


def attend(x: Tensor, keys: Tensor, values: Tensor, heads: int) -> Tensor:
    """``softmax(x Kᵀ / √head_dim) V`` per head, head_dim = D / heads; x and the result (B, N, D), K and V (P, D)."""
    queries = _split(x, heads)
    keys, values = (_split(rows, heads).expand(x.shape[0], -1, -1, -1) for rows in (keys, values))
    return F.scaled_dot_product_attention(queries, keys, values).transpose(-2, -3).flatten(-2)


def _split(rows: Tensor, heads: int) -> Tensor:
    """(…, N, D) to (…, heads, N, head_dim)."""
    return torch.unflatten(rows, -1, (heads, -1)).transpose(-2, -3)


def scaled(scale: nn.Module, out: Tensor, mixed: Tensor) -> Tensor:
    """``O + s ⊙ (M - O)`` with s acting on tokens B x N x (H · d); all three B x H x N x d."""
    change = (mixed - out).transpose(1, 2)
    branch: Tensor = scale(change.flatten(-2))
    return out + torch.unflatten(branch.to(out.dtype), -1, change.shape[-2:]).transpose(1, 2)


def check_heads(place: Placement, tuner: str) -> None:
    """Raises RuleError when the width does not divide into the heads."""
    if place.width % place.heads:
        raise RuleError(
            f"The tuner {tuner!r} cannot split its tokens into heads",
            found=f"width {place.width} and {place.heads} heads",
            fix="use res_adapter there, which has no heads",
        )
