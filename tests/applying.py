"""What tests of `apply` have in common."""

from typing import Any

import torch
from torch import nn

from fxtune.resources import rules_dir
from fxtune.source import load


def trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def rule(name: str, **changes: Any) -> dict[str, Any]:
    """A shipped rule file as a dict, with keys changed."""
    return {**load(rules_dir() / f"{name}.yaml").data, **changes}


def value(output: Any) -> torch.Tensor:
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return found


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
