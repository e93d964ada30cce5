"""The dtype that a model computes in."""

from __future__ import annotations

import torch
from torch import nn


def dtype_of(model: nn.Module) -> torch.dtype:
    """That of its first floating weights, in which it reads images, too; float32 where it has none."""
    return next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), torch.float32)
