"""Which of a tuner's methods a call of it runs."""

from __future__ import annotations

from torch import nn


def attached(module: nn.Module, method: str) -> nn.Module:
    """The module, whose call runs `method`; its weights and their names are the same in every form."""
    if method != "forward":
        module.forward = getattr(module, method)
    return module


def attached_by(module: nn.Module) -> str:
    """The method that a call of the module runs."""
    name: str = getattr(module.forward, "__name__", "forward")
    return name
