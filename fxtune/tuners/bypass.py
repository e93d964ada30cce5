"""The learned parts of a bypass beside its tuners: Res-Tuning-Bypass (Jiang et al., NeurIPS 2023), Eq. 8."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class Mix(nn.Module):
    """``λ h + (1 - λ) v``, λ = sigmoid(θ / τ); one weight, θ, zero at the start."""

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, h: Tensor, v: Tensor) -> Tensor:
        """Two tensors of one shape to a third, in float32 at least and then in the dtype of h."""
        share = torch.sigmoid(self.weight / self.temperature)
        exact = torch.promote_types(h.dtype, share.dtype)
        return torch.lerp(v.to(exact), h.to(exact), share.to(exact).expand(v.shape)).to(h.dtype)


class ChannelMap(nn.Module):
    """The way from C_in channels to C_out: C_in to C_in/2 to C_out with GELU between (`bottleneck`), or one map."""

    def __init__(self, width_in: int, width_out: int, kind: Literal["bottleneck", "linear"]) -> None:
        super().__init__()
        half = max(1, width_in // 2)
        if kind == "linear":
            self.map: nn.Module = nn.Linear(width_in, width_out)
        else:
            self.map = nn.Sequential(nn.Linear(width_in, half), nn.GELU(), nn.Linear(half, width_out))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens B x N x C_in to B x N x C_out."""
        wide: Tensor = self.map(x.to(next(self.parameters()).dtype))
        return wide.to(x.dtype)


class Widened(nn.Module):
    """From a bypass of smaller width to the network's: a layer norm, and a linear map with a bias."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm, self.map = nn.LayerNorm(width_in), nn.Linear(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens B x N x D/r to B x N x D."""
        wide: Tensor = self.map(self.norm(x.to(self.map.weight.dtype)))
        return wide.to(x.dtype)


class GatedSplice(nn.Module):
    """``x + g (z - x)``; one weight, g, zero at the start, so that x comes through untouched."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """The trunk's output and the bypass's, of one shape, to what the tail reads."""
        return (x + self.weight * (z - x)).to(x.dtype)
