"""Other tensors in a model's place, for a while: without memory, or fake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

Change = Callable[[Tensor], Tensor]


@contextmanager
def replaced(model: nn.Module, change: Change) -> Iterator[None]:
    """Puts ``change(tensor)`` in the place of each parameter, buffer and other tensor attribute, and takes it back.

    The model's own tensors are not touched, and lie in their places again whatever happens inside.
    """
    places = _places(model)
    before = [(place, dict(place)) for place in places]
    try:
        for place in places:
            place.update({name: change(value) for name, value in place.items() if isinstance(value, Tensor)})
        yield
    finally:
        for place, values in before:
            place.clear()
            place.update(values)


class Alike:
    """Makes tensors like others on another device: same shapes, strides and dtypes, and what shares memory still does.

    Args:
        device: where; ``meta`` has no memory, and under a FakeTensorMode no device has.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._made: dict[int, tuple[Tensor, Tensor]] = {}
        self._bases: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        """The tensor's stand-in; the same one each time."""
        if id(tensor) not in self._made:
            self._made[id(tensor)] = (tensor, self._make(tensor))  # the tensor as well: its id is good while it lives
        return self._made[id(tensor)][1]

    def all(self, tree: Any) -> Any:
        """The arguments of a call, with stand-ins for its tensors."""
        return tree_map(lambda leaf: self(leaf) if isinstance(leaf, Tensor) else leaf, tree)

    def _make(self, tensor: Tensor) -> Tensor:
        place = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride())
        if place not in self._bases:
            self._bases[place] = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self._device
            )
        base = self._bases[place]
        return nn.Parameter(base, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else base


def _places(model: nn.Module) -> list[dict[str, Any]]:
    """The dicts in which modules hold tensors, each once: the Regions of a capture share theirs with its source."""
    places = [d for module in model.modules() for d in (module._parameters, module._buffers, module.__dict__)]
    return list({id(place): place for place in places}.values())
