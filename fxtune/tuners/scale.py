"""The learned scale on a tuner's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

ScaleKind = Literal["none", "scalar", "channel", "gate"] | Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""No scale; one factor; one factor a channel; a factor a sample, computed from the output itself; or a fixed number."""


def make_scale(kind: ScaleKind, width: int, *, start: float = 1.0) -> nn.Module:
    """The module that scales a tuner's output (B, N, D), D = `width`; scalar and channel factors begin at `start`."""
    match kind:
        case "none":
            return nn.Identity()
        case "scalar":
            return Factor(1, start)
        case "channel":
            return Factor(width, start)
        case "gate":
            return Gate(width)
        case number:
            return Fixed(number)


def scaled_rows(scale: nn.Module, branch: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """``s ⊙ branch(rows)``, (B, N, D), of a branch that is linear in these rows (…, D): all but a gate scale them.

    A few rows are cheaper to scale than every token, and of those no copy is kept for the backward pass.
    """
    if isinstance(scale, Gate):
        gated: Tensor = scale(branch(*rows))
        return gated
    return branch(*map(scale, rows))


class Fixed(nn.Module):
    """``s x``, without weights."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Factor(nn.Module):
    """``s ⊙ x`` with one weight, or one for each channel."""

    def __init__(self, size: int, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((size,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Gate(nn.Module):
    """``g · x`` with ``g = mean over tokens of sigmoid(x w + b)``, one number for each sample; D + 1 weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.map(x)).mean(dim=-2, keepdim=True)
