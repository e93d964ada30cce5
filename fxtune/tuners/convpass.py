"""``convpass``: a bottleneck with a convolution over the patches, Convpass (Jie and Deng, 2022)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fxtune.tuners.placement import Placement
from fxtune.tuners.registry import tuner
from fxtune.tuners.widened import widened


@tuner("convpass")
class Convpass(nn.Module):
    """``s (W_up φ(conv(φ(W_down x + b_down))) + b_up)`` at every position, ``φ(z) = z · sigmoid(1.702 z)``.

    The convolution is 3 x 3 with zeros around the map; a token that is no position, such as a class token, is a map of
    one position, which meets the kernel's centre alone. 2Dm + 9m² + 2m + D weights.

    Args:
        place: where it goes; D is its width.
        dim: m, the width of the bottleneck.
        scale: s, a fixed number: from 0.01 to 10, task by task, in the paper; 1 is the default of its code.
        conv: how the convolution starts: as the identity (biases zero), or `xavier` as in the paper's code for most
            tasks. W_down is Xavier-uniform, b_down zero; W_up and b_up are zero: the untrained model stays bit-equal.
        dropout: of φ's second result, in training.
    """

    def __init__(
        self,
        place: Placement,
        *,
        dim: Annotated[int, Field(ge=1)] = 8,
        scale: Annotated[float, Field(allow_inf_nan=False)] = 1.0,
        conv: Literal["identity", "xavier"] = "identity",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(place.width, dim)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.up = nn.Linear(dim, place.width)
        self.dropout = nn.Dropout(dropout)
        self.factor = scale
        nn.init.xavier_uniform_(self.down.weight)
        if conv == "identity":
            nn.init.dirac_(self.conv.weight)
        else:
            nn.init.xavier_uniform_(self.conv.weight)
        zero: list[Any] = [self.down.bias, self.conv.bias, self.up.weight, self.up.bias]
        for weight in zero:
            nn.init.zeros_(weight)

    def on_map(self, x: Tensor) -> Tensor:
        """A map (B, D, H, W) to what is added to the operation's output, (B, D, H, W)."""
        z: Tensor = self.down(x.movedim(1, -1).to(self.up.weight.dtype))
        z = self.conv(_quick_gelu(z).movedim(-1, 1)).movedim(1, -1)
        z = widened(self.dropout(_quick_gelu(z)), self.factor * self.up.weight.t(), self.factor * self.up.bias)
        return z.movedim(-1, 1).to(x.dtype)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)
