"""Weights for an example: every parameter non-zero, of a size that keeps activations and logits moderate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

_STATISTICS = ("running_mean", "running_var")
"""torch's names of the buffers of a norm that counts its batches; no other buffer is drawn."""


def drawn_weights(shapes: Mapping[str, torch.Size], seed: int) -> dict[str, Tensor]:
    """Values for tensors of these names and shapes, in float64.

    A number is ``± u / √fan``, u uniform in [1/2, 1] and fan the number of inputs of a matrix or kernel (1 for a bias,
    the weight of a norm, a layer scale). So none is near zero, what passes a layer keeps its size, and a norm or a
    scale is neither identity nor zero. Variances are positive.
    """
    generator = torch.Generator().manual_seed(seed)
    return {name: _values(name, shape, generator) for name, shape in shapes.items()}


def drawn_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The floating parameters of a model and the running statistics of its norms."""
    yield from ((name, tensor) for name, tensor in model.named_parameters() if tensor.is_floating_point())
    yield from ((name, tensor) for name, tensor in model.named_buffers() if name.endswith(_STATISTICS))


def representable(tensor: Tensor) -> Tensor:
    """The nearest values that bfloat16 can represent, in the dtype of the tensor; infinite ones stay."""
    most = torch.finfo(torch.bfloat16).max
    clamped = torch.where(tensor.isinf(), tensor, tensor.clamp(-most, most))
    return clamped.to(torch.bfloat16).to(tensor.dtype)


def _values(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    size = 0.5 + 0.5 * torch.rand(shape, generator=generator, dtype=torch.float64)
    sign = torch.randint(2, shape, generator=generator) * 2 - 1
    if name.endswith("running_var"):
        return size
    fan = math.prod(shape[1:]) if len(shape) > 1 else 1
    return sign * size / math.sqrt(fan)
