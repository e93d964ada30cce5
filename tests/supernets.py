"""Supernets on small models, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from families import FAMILIES, build, tuned_on
from fxtune.searching import Supernet

WIDTH = 32  # of both models; each has two Blocks
SIZES = [0, 1, 5, 10]


def supernet_on(family: str, rules: Any = "noah", **options: Any) -> Supernet:
    """In float64, with every trained weight away from its start."""
    return Supernet(tuned_on(build(family).double(), example(family), rules, dtype=torch.float64, **options))


def example(family: str) -> Any:
    return ((), inputs(family))


def inputs(family: str, batch: int = 3) -> dict[str, Any]:
    """In float64, where they have a fraction."""
    return {k: v.double() if v.is_floating_point() else v for k, v in FAMILIES[family].inputs(batch).items()}


def logits(output: Any) -> torch.Tensor:
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output.logits
    return found


def run(tuned: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return logits(tuned(**inputs("vit")))


def tuner_at(name: str) -> tuple[str, str] | None:
    """Module path and name of the weight, where a state_dict name is a tuner's."""
    before, found, after = name.partition(".tuners.")
    label, _, weight = after.partition(".")
    return (f"{before}.tuners.{label}", weight) if found else None
