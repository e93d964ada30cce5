"""Tuners that compute with the first units of their weights alone, for a while."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


def first_units(module: nn.Module, axes: Mapping[str, int | None], size: int) -> dict[str, Tensor]:
    """What a tuner of `size` units computes with, by name: views of the module's weights, to which gradients flow.

    Args:
        module: the tuner.
        axes: name of a weight -> the axis of its units; None: it stays whole, and is zero where there are no units.
        size: how many units, 0 too.
    """
    weights, taken = dict(module.named_parameters()), {}
    for name, axis in axes.items():
        if axis is not None:
            taken[name] = weights[name].narrow(axis, 0, size)
        elif size == 0:
            # A product, so that it has a gradient whatever is drawn: in distributed training all weights must.
            taken[name] = weights[name] * 0
    return taken


@contextmanager
def computing_with(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """While on, the module computes with these tensors in the place of its weights of the same names.

    They hide the weights from the module's own code alone: Python looks into an object's `__dict__` first, and
    `nn.Module` keeps its parameters elsewhere. So `parameters()`, optimizers, gradient clipping and the state_dict have
    the weights themselves, with their gradients, all the time.

    The class changes too, to one that is the same: what torch has compiled holds for a class and the tensors' shapes,
    and it would not look for what hides a parameter.
    """
    before: list[tuple[nn.Module, str, Tensor | None, type[nn.Module]]] = []
    try:
        for name, tensor in weights.items():
            path, _, leaf = name.rpartition(".")
            holder = module.get_submodule(path)
            before.append((holder, leaf, holder.__dict__.get(leaf), type(holder)))
            holder.__dict__[leaf] = tensor
            holder.__class__ = _hiding(type(holder))
        yield
    finally:
        for holder, leaf, hidden, cls in reversed(before):
            holder.__class__ = cls
            if hidden is None:
                del holder.__dict__[leaf]
            else:
                holder.__dict__[leaf] = hidden


class _Hiding:
    """What hides weights."""


_classes: dict[type[nn.Module], type[nn.Module]] = {}


def _hiding(cls: type[nn.Module]) -> type[nn.Module]:
    """A class that is the same and another."""
    if issubclass(cls, _Hiding):
        return cls
    if cls not in _classes:
        names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        _classes[cls] = types.new_class(cls.__name__, (cls, _Hiding), {}, lambda body: body.update(names))
    return _classes[cls]
