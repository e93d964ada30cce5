"""What can't be done with weights that are quantised, or wrapped otherwise: only their modules compute with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxtune.errors import InputError, PlanError
from fxtune.tracing import Region
from fxtune.wrapped import is_wrapped


def check_trainable(weights: Mapping[str, torch.Tensor]) -> None:
    """Refuses to train what only passes for floating numbers.

    Raises:
        PlanError: a weight is quantised; which.
    """
    quantised = [name for name, weight in weights.items() if is_wrapped(weight)]
    if quantised:
        raise PlanError(
            "Quantised weights can't train.",
            found=f"{_shown(quantised[0], weights[quantised[0]])}, and {len(quantised) - 1} more",
            fix="let the tuners train beside them (`train: [tuners]`), pass num_classes= for a new head, or leave what "
            "is to train in floating point when you quantise",
        )


def check_unread(graph: Region) -> None:
    """Refuses a graph that computes with a quantised weight itself, rather than by a call of the module that has it.

    Raises:
        PlanError: which weight, and where.
    """
    for path, region in graph.named_modules():
        if not isinstance(region, Region):
            continue
        for node in region.graph.find_nodes(op="get_attr"):
            home, _, name = str(node.target).rpartition(".")
            weight = getattr(region.get_submodule(home), name)
            if isinstance(weight, torch.Tensor) and is_wrapped(weight):
                raise PlanError(
                    "Quantised weights can't be computed with outside of their own module.",
                    found=_shown(str(node.target), weight),
                    where=path or "the model's own forward",
                    fix="leave form='original' and optimize=True out, which do that; where the model's own code does, "
                    "leave this weight in floating point when you quantise",
                )


def check_loadable(state_dict: Mapping[str, Any], model: nn.Module) -> None:
    """Refuses values for quantised weights that are not quantised alike.

    Raises:
        InputError: for which weight.
    """
    for name, weight in model.state_dict(keep_vars=True).items():
        value = state_dict.get(name, weight)
        if isinstance(weight, torch.Tensor) and is_wrapped(weight) and type(value) is not type(weight):
            raise InputError(
                "A quantised weight can't take other values than quantised ones.",
                found=f"a {type(value).__name__} for {_shown(name, weight)}",
                fix="load them into the model before you quantise it, or load the tuners alone (fxtune.load)",
            )


def _shown(name: str, weight: torch.Tensor) -> str:
    return f"`{name}`, which is of type {type(weight).__name__}"
