"""The small models that the model cards name, built."""

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fxtune import cards


def small_models() -> Iterator[tuple[str, cards.Small]]:
    """An identifier and the description of every small model."""
    for card in cards.shipped():
        for number, small in enumerate(card.small):
            yield f"{card.card}-{number}", small


def build(small: cards.Small) -> nn.Module:
    """The model that `small` describes, in eval mode, with reproducible weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _call(small.call, small.arguments)
    assert isinstance(model, nn.Module)
    return model.eval()


def _call(path: str, arguments: dict[str, Any]) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)(**{key: _argument(value) for key, value in arguments.items()})


def _argument(value: Any) -> Any:
    if isinstance(value, dict) and "call" in value:
        return _call(value["call"], value.get("arguments", {}))
    return value
