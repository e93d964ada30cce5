"""Parameter groups for an optimiser: tuners, head and the other weights that train, with weight decay and without."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(
    model: nn.Module, head: str | None, *, lr: float, weight_decay: float = 0.0, head_lr: float | None = None
) -> list[dict[str, Any]]:
    """Named groups for `torch.optim`, holding each parameter that trains once.

    A group is called ``tuners``, ``head`` or ``backbone`` (original weights that a rule trains), and ``…/no_decay``
    for those of its parameters that weight decay would only hurt: biases, norms, scales, which are those of fewer
    than two dimensions.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        kind, decays = _kind(name, head), parameter.ndim > 1
        group = groups.setdefault(
            kind if decays else f"{kind}/no_decay",
            {
                "name": kind if decays else f"{kind}/no_decay",
                "params": [],
                "lr": head_lr if kind == "head" and head_lr is not None else lr,
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def _kind(name: str, head: str | None) -> str:
    if "tuners" in name.split("."):
        return "tuners"
    if head is not None and name.startswith(f"{head}."):
        return "head"
    return "backbone"
