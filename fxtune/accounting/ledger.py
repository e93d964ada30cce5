"""What lies in memory while operators run: every storage from its first tensor to its last."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fxtune.accounting.corrections import corrected
from fxtune.accounting.workspace import workspace

_CUDA_BLOCK = 512
"""The CUDA allocator gives out blocks of so many bytes, and counts them whole."""


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that live on one device.

    It stands under autograd and over the kernels, so it sees what a program, autograd and an optimizer ask for,
    temporaries of theirs included; what a kernel takes for itself alone is estimated by `workspace`. A storage counts
    once however many views of it there are, and as long as anyone holds one of them.

    Args:
        device: ``cpu`` or ``cuda``; storages on others don't count.

    Attributes:
        bytes: what lives now.
        peak: the most that lived at once.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self.peak = 0
        self._device = device
        self._live: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}

    def enter(self, tensor: Tensor) -> None:
        """Counts the tensor's storage from now on."""
        storage = tensor.untyped_storage()
        if tensor.device.type != self._device.type or storage._cdata in self._live:
            return
        key, size = storage._cdata, self.size(tensor)
        self._live[key] = (weakref.ref(storage, lambda _: self._leave(key)), size)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)

    def size(self, tensor: Tensor) -> int:
        """What the tensor's storage takes, as the device's allocator counts."""
        size = tensor.untyped_storage().nbytes()
        return size if self._device.type == "cpu" else -(-size // _CUDA_BLOCK) * _CUDA_BLOCK

    def total(self, tensors: Iterable[Tensor]) -> int:
        """What these tensors take together, each storage once."""
        here = (tensor for tensor in tensors if tensor.device.type == self._device.type)
        return sum({tensor.untyped_storage()._cdata: self.size(tensor) for tensor in here}.values())

    def _leave(self, key: int) -> None:
        self.bytes -= self._live.pop(key)[1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._device.type == "cpu":
            out = corrected(func, args, out)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.enter(leaf)
        if self._device.type == "cpu":
            self.peak = max(self.peak, self.bytes + workspace(func, args, out))
        return out
