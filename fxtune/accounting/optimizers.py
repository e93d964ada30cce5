"""The optimizers that memory is told for, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxtune import source
from fxtune.errors import FxtuneError

Optimizer = str | Callable[[list[Tensor]], torch.optim.Optimizer]

_NAMED: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "momentum": (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}),
    "sgd": (torch.optim.SGD, {"lr": 1e-3}),
}


def check_optimizer(optimizer: object) -> None:
    """Raises FxtuneError for what names no optimizer and makes none."""
    if callable(optimizer) or (isinstance(optimizer, str) and optimizer in _NAMED):
        return
    near = source.nearest(optimizer, _NAMED) if isinstance(optimizer, str) else []
    raise FxtuneError(
        f"There is no optimizer called {optimizer!r} here",
        found=f"nearest: {', '.join(near)}" if near else f"known: {', '.join(_NAMED)}",
        fix="name one of these, or pass what makes one: lambda weights: torch.optim.RMSprop(weights)",
    )


def make(optimizer: Optimizer, weights: list[Tensor]) -> torch.optim.Optimizer:
    """The optimizer over these weights."""
    if not isinstance(optimizer, str):
        return optimizer(weights)
    build, settings = _NAMED[optimizer]
    # What torch chooses by itself for real weights, and not for fake ones.
    return build(weights, foreach=weights[0].device.type == "cuda", **settings)
