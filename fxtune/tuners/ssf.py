"""``ssf``: a factor and a shift for each channel, SSF (Lian et al., NeurIPS 2022)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from fxtune.tuners.parting import PerChannel
from fxtune.tuners.placement import Placement
from fxtune.tuners.registry import tuner


@tuner("ssf")
class Ssf(PerChannel, nn.Module):
    """``s ⊙ y + t`` in the place of an operation's output y, or ``(s - 1) ⊙ y + t`` added to it; 2D weights.

    s is drawn from N(1, 0.02), t from N(0, 0.02), as in the paper's code. Its rule must read the output.

    Args:
        place: where it goes; D is its width.
    """

    reads_output: ClassVar[bool] = True

    def __init__(self, place: Placement) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(place.width))
        self.shift = nn.Parameter(torch.empty(place.width))
        nn.init.normal_(self.scale, mean=1.0, std=0.02)
        nn.init.normal_(self.shift, std=0.02)

    def forward(self, y: Tensor) -> Tensor:
        """Tokens (B, N, D), the operation's output, to what is added to it, (B, N, D)."""
        z: Tensor = (self.scale - 1) * y.to(self.scale.dtype) + self.shift
        return z.to(y.dtype)

    def in_sequence(self, y: Tensor) -> Tensor:
        """Original form: a layer behind the operation, (B, N, D) to what goes on in its place."""
        z: Tensor = self.scale * y.to(self.scale.dtype) + self.shift
        return z.to(y.dtype)

    def in_weights(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Folded: ``s W`` and ``s b + t``, as the method's paper deploys it.

        Args:
            weight: of the operation, whose first axis is that of the D channels, or None.
            bias: b, D; or None for an operation that has none.

        Returns:
            The two tensors to compute with; in the dtype that they had, the bias in the weight's where it is new.
        """
        wide = torch.promote_types(self.scale.dtype, _dtype(weight, bias))
        scale, shift = self.scale.to(wide), self.shift.to(wide)
        scaled = None if weight is None else weight * scale.view(-1, *[1] * (weight.dim() - 1))
        moved = shift if bias is None else scale * bias + shift
        return (
            None if weight is None or scaled is None else scaled.to(weight.dtype),
            moved.to(_dtype(bias, weight)),
        )


def _dtype(*tensors: Tensor | None) -> torch.dtype:
    """That of the first tensor that there is."""
    return next((tensor.dtype for tensor in tensors if tensor is not None), torch.float32)
