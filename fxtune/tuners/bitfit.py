"""``bitfit``: a change of the bias alone, BitFit (Ben Zaken et al., ACL 2022)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxtune.tuners.parting import PerChannel
from fxtune.tuners.placement import Placement
from fxtune.tuners.registry import tuner


@tuner("bitfit")
class BitFit(PerChannel, nn.Module):
    """``δ``, a number a channel, added to an operation's output; D weights, zero at the start.

    Args:
        place: where it goes; D is its width.
    """

    def __init__(self, place: Placement) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(place.width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, ...), of which only their number and dtype count, to what is added to the output, (B, N, D)."""
        return self.delta.to(x.dtype).expand(*x.shape[:-1], -1)

    def in_weights(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Original form: the bias changed, ``b + δ``.

        Args:
            weight: of the operation, of any shape, or None; it stays as it is.
            bias: b, D; or None for an operation that has none.

        Returns:
            The two tensors to compute with; the bias in the dtype that it had, or in the weight's where it is new.
        """
        if bias is None:
            return weight, self.delta if weight is None else self.delta.to(weight.dtype)
        return weight, (bias + self.delta).to(bias.dtype)
