"""What is said when a training diverges."""

from __future__ import annotations

import math

import torch
from torch import nn

from fxtune.errors import TrainingError
from fxtune.training.layout import whole

TOLD = 5
"""So many of the largest gradients are named."""


def diverged(model: nn.Module, what: str, step: int, lr: float, smallest_lr: float) -> TrainingError:
    """What to raise where loss or weights are not finite: the weights still have the gradients of the last step.

    Args:
        model: its parameters have the gradients of the step before; in the first step, of this one.
        what: is not finite.
        step: counted from 1.
        lr: the learning rate of the step.
        smallest_lr: what to try.
    """
    norms = {
        name: float(torch.linalg.vector_norm(whole(parameter.grad).float()))
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    # NaN first, then the largest.
    largest = sorted(norms, key=lambda name: math.inf if math.isnan(norms[name]) else norms[name], reverse=True)[:TOLD]
    broken = [name for name, weight in model.named_parameters() if not bool(torch.isfinite(whole(weight)).all())]
    found = (
        "largest gradients: " + ", ".join(f"{name} {norms[name]:.2g}" for name in largest) if norms else "no gradients"
    )
    if broken:
        found = f"{len(broken)} weights that are not finite, the first `{broken[0]}`; {found}"
    return TrainingError(
        f"{what} at step {step}",
        found=found,
        where=f"step {step}, learning rate {lr:.3g}",
        fix=f"try, in another folder, a lower learning rate (optimizer.lr={smallest_lr:.3g}), a longer warm-up "
        "(schedule.warmup), or clip the gradients (clip=1.0); under bfloat16, try precision=float32",
    )
