"""A model's modules in another mode for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """The model as its own `train` leaves it; afterwards each of its modules is in its own mode again."""
    was = model.training
    with modes_kept(model.modules()):
        model.train(training)
        try:
            yield
        finally:
            model.train(was)  # what else a `train` of the model's own sets


@contextmanager
def modes_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Whatever is done to the modules' modes, each has its own again afterwards."""
    modes = [(module, module.training) for module in modules]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
