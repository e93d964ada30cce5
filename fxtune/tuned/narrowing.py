"""Tuners that compute with the first units of their weights alone, for a while."""

from __future__ import annotations

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
    """
    before: list[tuple[nn.Module, str, Tensor | None]] = []
    try:
        for name, tensor in weights.items():
            path, _, leaf = name.rpartition(".")
            holder = module.get_submodule(path)
            before.append((holder, leaf, holder.__dict__.get(leaf)))
            holder.__dict__[leaf] = tensor
        yield
    finally:
        for holder, leaf, hidden in reversed(before):
            if hidden is None:
                del holder.__dict__[leaf]
            else:
                holder.__dict__[leaf] = hidden
