"""One training step, the same for every model that is compared."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW over what trains, in torch's fused kernel, as `fxtune tune` runs it on the CPU."""
    return torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-4, fused=True)


def stepping(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """What makes one step of AdamW down a loss."""
    optimizer = adamw(model)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step
