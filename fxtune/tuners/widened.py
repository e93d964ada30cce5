"""From a thin hidden layer to all channels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def widened(h: Tensor, rows: Tensor, bias: Tensor | None = None) -> Tensor:
    """``h R + b`` of hidden values h (B, N, m) and rows R (m, D), m much smaller than D; the result (B, N, D).

    ``h Wᵀ`` of a W stored as D x m is the same, but its backward pass takes up to three times as long on a CPU: the
    matrix libraries are slow at products whose result or sum is m wide unless m is a multiple of 16. So R, which is
    small, is laid out row by row first.
    """
    return F.linear(h, rows.contiguous().t(), bias)
