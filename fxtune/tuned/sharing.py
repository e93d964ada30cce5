"""Several graphs over one set of modules: a further capture takes over what the first one has."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from fxtune.errors import PlanError, UntunedCallError
from fxtune.tracing import Region
from fxtune.wrapped import same_numbers

_GRAPH_ATTRIBUTES = {*nn.Module().__dict__, "training", "meta", "signature", "train"}


def take_over(new: Region, first: nn.Module) -> None:
    """Let the graph `new` use the tuners of `first`, and its Regions where the code is identical."""
    for name, child in new._modules.items():
        there = first._modules.get(name)
        if child is not None and there is not None:
            new._modules[name] = _merged(child, there, name)


def _merged(new: nn.Module, first: nn.Module, name: str) -> nn.Module:
    if new is first or name == "tuners":
        return first
    for key, child in new._modules.items():
        there = first._modules.get(key)
        if child is not None and there is not None:
            new._modules[key] = _merged(child, there, key)
    return first if _same(new, first) else new


def _same(new: nn.Module, first: nn.Module) -> bool:
    """Do two modules at one path compute the same, from the same tensors?"""
    if isinstance(new, GraphModule) and isinstance(first, GraphModule):
        if type(new).__bases__ != type(first).__bases__ or new.code != first.code:
            return False
    elif type(new) is not type(first):
        return False
    return (
        _identical(new._modules, first._modules)
        and _identical(new._parameters, first._parameters)
        and new._buffers.keys() == first._buffers.keys()
        and all(_equal(new._buffers[name], first._buffers[name]) for name in new._buffers)
        and _equal(_plain(new), _plain(first))
    )


def _identical(new: dict[str, Any], first: dict[str, Any]) -> bool:
    return new.keys() == first.keys() and all(new[name] is first[name] for name in new)


def _plain(module: nn.Module) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(module).items()
        if name not in _GRAPH_ATTRIBUTES and not (isinstance(module, GraphModule) and name.startswith("_"))
    }


def _equal(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same_kind = a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
        return same_kind and not a.is_meta and same_numbers(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return isinstance(a, (bool, int, float, str, tuple, list)) and type(a) is type(b) and bool(a == b)


def check_tuned_alike(new: Region, first: Region, what: str) -> None:
    """Refuse a further graph that would leave out tuners of the first one, or bring others.

    Raises:
        UntunedCallError: the graph walks around a rewritten Region, using what is inside it.
        PlanError: a Region has other tuners than in the first graph.
    """
    tuned, expected = _tuned_regions(new), _tuned_regions(first)
    for path, labels in expected.items():
        region = _submodule(new, path)
        around = _used_below(new, path) - _used_below(first, path)
        if not isinstance(region, Region) and around:
            raise UntunedCallError(
                f"`{what}` can't run tuned: it does not call `{path or 'the model'}` but what is inside it.",
                found=f"uses of {', '.join(sorted(around)[:3])}, where no tuner of `{path or 'the model'}` would act",
                fix="call the tuned model itself, or strip() for the original",
            )
        if isinstance(region, Region) and tuned.get(path) != labels:
            raise UntunedCallError(
                f"`{what}` can't run tuned: the tuners of `{path or 'the model'}` don't fit in its graph.",
                found=f"tuners {sorted(tuned.get(path, ()))}, not {sorted(labels)}",
                fix="call the tuned model itself, or strip() for the original",
            )
    if extra := sorted(tuned.keys() - expected.keys()):
        raise PlanError(
            f"`{what}` runs sites that the first graph does not have, so there are no tuners for them.",
            found=", ".join(extra),
            fix="apply the rules with example_inputs that run every part of the model",
        )


def _tuned_regions(root: nn.Module) -> dict[str, set[str]]:
    return {
        path: set(module._modules["tuners"].state_dict())  # type: ignore[union-attr]
        for path, module in root.named_modules()
        if isinstance(module, Region) and module._modules.get("tuners") is not None
    }


def _submodule(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


def _used_below(root: nn.Module, path: str) -> set[str]:
    """What Regions outside `path` call or read below it, as absolute paths."""
    inside = f"{path}." if path else ""
    used: set[str] = set()
    for home, region in root.named_modules():
        if not isinstance(region, Region) or home == path or home.startswith(inside):
            continue
        prefix = f"{home}." if home else ""
        targets = {f"{prefix}{node.target}" for node in region.graph.nodes if node.op in ("call_module", "get_attr")}
        used |= {target for target in targets if target.startswith(inside)}
    return used
