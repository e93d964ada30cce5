"""Feed-forward networks for property tests: a strategy that draws their shapes, and the modules they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

ActivationKind = Literal["gelu", "relu", "silu"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


@dataclass(frozen=True, repr=False)
class FFNShape:
    """One feed-forward network on a residual stream, small plain data.

    Attributes:
        batch: samples, at least 2, for a size of 1 would stay fixed in a capture.
        tokens: N, at least 2.
        width: D.
        hidden: channels between the two projections.
        gated: whether the activation of one projection multiplies another (GEGLU, SwiGLU).
        joined: whether those two are one matrix.
        bias: whether the projections have biases.
        activation: φ.
        seed: of the weights and inputs.
    """

    batch: int = 2
    tokens: int = 3
    width: int = 4
    hidden: int = 4
    gated: bool = False
    joined: bool = False
    bias: bool = True
    activation: ActivationKind = "gelu"
    seed: int = 0

    def __repr__(self) -> str:
        given = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default)
        return f"FFNShape({', '.join(given)})"

    def build(self, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, tuple[Tensor]]:
        """A model that is ``x + FFN(x)``, and its input: B x N x D. Drawn in float64 from `seed`, then rounded."""
        made = torch.Generator().manual_seed(self.seed)
        model = FFN(self).to(torch.float64)
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(generator=made).mul_(weight.shape[-1] ** -0.5)
        x = torch.randn(self.batch, self.tokens, self.width, generator=made, dtype=torch.float64)
        return model.to(dtype).eval(), (x.to(dtype),)


class FFN(nn.Module):
    """``x + φ(x W1 + b1) W2 + b2``, or with ``φ(x Wg + bg) ⊙ (x W1 + b1)`` between the projections."""

    def __init__(self, shape: FFNShape) -> None:
        super().__init__()
        self.shape = shape
        halves = 2 if shape.gated and shape.joined else 1
        self.up = nn.Linear(shape.width, halves * shape.hidden, bias=shape.bias)
        if shape.gated and not shape.joined:
            self.gate = nn.Linear(shape.width, shape.hidden, bias=shape.bias)
        self.down = nn.Linear(shape.hidden, shape.width, bias=shape.bias)

    def forward(self, x: Tensor) -> Tensor:
        """B x N x D to B x N x D."""
        return x + self.feed_forward(x)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The branch alone."""
        activation, hidden = _ACTIVATIONS[self.shape.activation], self.up(x)
        if not self.shape.gated:
            branch: Tensor = self.down(activation(hidden))
            return branch
        gate, value = hidden.chunk(2, dim=-1) if self.shape.joined else (self.gate(x), hidden)
        branch = self.down(activation(gate) * value)
        return branch


def ffn_shapes() -> st.SearchStrategy[FFNShape]:
    """A strategy for feed-forward networks: plain and gated, of every activation, with and without biases."""
    return st.builds(
        FFNShape,
        batch=st.integers(2, 4),
        tokens=st.integers(2, 9),
        width=st.integers(2, 16),
        hidden=st.integers(2, 24),
        gated=st.booleans(),
        joined=st.booleans(),
        bias=st.booleans(),
        activation=st.sampled_from(tuple(_ACTIVATIONS)),
        seed=st.integers(0, 2**16),
    )
