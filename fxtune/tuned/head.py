"""A new head for another number of classes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from fxtune.errors import PlanError


def replace_head(
    twin: nn.Module,
    path: str | None,
    num_classes: int,
    *,
    class_count_attributes: Iterable[str] = (),
    seed: int | None = None,
) -> None:
    """Put a new last layer on the twin: a Linear, or a 1x1 convolution where the old head is one.

    It reads the old head's width, has a bias if the old one has, and torch's default init (Kaiming-uniform, as timm's
    `reset_classifier`), drawn on the CPU in float32 so that a seed gives the same head on any device.

    Args:
        class_count_attributes: dotted attributes of the model that hold the number of classes; those that exist are
            set.
        seed: draw from a generator of its own; by default from torch's.

    Raises:
        PlanError: there is no head, or it is no Linear and no 1x1 convolution.
    """
    if num_classes < 1:
        raise PlanError("A new head needs at least one class.", found=f"num_classes={num_classes}")
    old = _head(twin, path)
    with _drawing_from(seed):
        new = _like(old, path or "", num_classes)
    new.train(old.training)
    for module in list(twin.modules()):
        for name, child in module._modules.items():
            if child is old:
                setattr(module, name, new)
    for attribute in class_count_attributes:
        _set(twin, attribute, num_classes)


def _head(twin: nn.Module, path: str | None) -> nn.Module:
    if path is None:
        raise PlanError(
            f"num_classes= needs a head, and none was found on {type(twin).__name__}.",
            fix="name the layer to replace: head='path.of.the.last.linear'",
        )
    try:
        return twin.get_submodule(path)
    except AttributeError as error:
        raise PlanError(f"There is no module `{path}` to be the head.", fix="correct head=") from error


def _like(old: nn.Module, path: str, num_classes: int) -> nn.Module:
    make: Callable[..., nn.Module]
    bias = getattr(old, "bias", None) is not None
    if isinstance(old, nn.Linear):
        make = functools.partial(nn.Linear, old.in_features, num_classes, bias=bias)
    elif isinstance(old, nn.Conv2d) and set(old.kernel_size) == {1} and old.groups == 1:
        make = functools.partial(nn.Conv2d, old.in_channels, num_classes, 1, stride=old.stride[0], bias=bias)
    else:
        raise PlanError(
            f"The head `{path}` can't be replaced.",
            found=f"a {type(old).__name__}",
            fix="name the Linear or 1x1 convolution inside it: head='path.of.that.layer'",
        )
    weight = old.weight
    if weight.is_meta:
        return make(device="meta", dtype=weight.dtype)
    return make(device="cpu", dtype=torch.float32).to(weight.device, weight.dtype)


@contextlib.contextmanager
def _drawing_from(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _set(model: nn.Module, attribute: str, value: int) -> None:
    *owners, name = attribute.split(".")
    owner: object = model
    for part in owners:
        owner = getattr(owner, part, None)
    if owner is not None and hasattr(owner, name):
        setattr(owner, name, value)
