"""Where the weights of a training lie: whole in each process, or parted over all of them."""

from __future__ import annotations

import contextlib
import copy
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from fxtune.tuned import TunedModel, blocks_of


class Layout:
    """Every process holds all weights; where there are several, they exchange gradients (DistributedDataParallel).

    Attributes:
        tuned: what is trained, whole: what is written, and what is handed out.
        trained: what holds the weights that the optimizer is over.
        computing: what a step calls.
    """

    tuned: TunedModel
    trained: TunedModel
    computing: nn.Module

    def __init__(self, tuned: TunedModel, processes: Any) -> None:
        self._processes = processes
        self.tuned = self.trained = tuned.to(processes.device)
        self.computing = processes.prepare_model(tuned)

    def exchanging(self, on: bool) -> AbstractContextManager[Any]:
        """Whether the processes exchange the gradients of the passes in it."""
        quiet: AbstractContextManager[Any] = self._processes.no_sync(self.computing)
        return contextlib.nullcontext() if on else quiet

    def weights(self) -> dict[str, nn.Parameter]:
        """What the optimizer is over, by name."""
        return {name: weight for name, weight in self.trained.named_parameters() if weight.requires_grad}

    def gather(self) -> None:
        """Brings what has been trained into `tuned`. All processes call it."""

    def spread(self) -> None:
        """Brings what `tuned` holds into what is trained. All processes call it."""


class Parted(Layout):
    """Each process holds its part of every weight, of what trains and of the backbone (FSDP2: Zhao et al., 2023).

    A Block's weights are whole while it computes, the rest's throughout a pass. `tuned` stays whole, where it was, and
    is brought up to date by `gather`; a copy of it is what computes.
    """

    def __init__(self, tuned: TunedModel, processes: Any) -> None:
        self.tuned, self._device = tuned, processes.device
        # Frozen weights need no second copy here: what is parted is made anew from them.
        frozen = {id(weight): weight for weight in tuned.parameters() if not weight.requires_grad}
        self.trained = copy.deepcopy(tuned, {id(tuned.strip()): tuned.strip(), **frozen}).to(self._device)
        mesh = init_device_mesh(self._device.type, (processes.num_processes,))
        for block in blocks_of(self.trained):
            fully_shard(block, mesh=mesh)
        self._root: FSDPModule = fully_shard(self.trained, mesh=mesh)
        self.computing = self.trained

    def exchanging(self, on: bool) -> AbstractContextManager[Any]:
        self._root.set_requires_gradient_sync(on)
        return contextlib.nullcontext()

    def gather(self) -> None:
        found = {name: whole(tensor) for name, tensor in self._moving().items()}
        with torch.no_grad():
            self.tuned.load_state_dict(found, strict=False)

    def spread(self) -> None:
        theirs = self.tuned.state_dict()
        with torch.no_grad():
            for name, tensor in self._moving().items():
                own_part(tensor).copy_(own_part(laid_out(theirs[name], tensor)))

    def weights(self) -> dict[str, nn.Parameter]:
        for module in self.trained.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # a pass without a backward leaves whole weights in their place
        return super().weights()

    def _moving(self) -> dict[str, Tensor]:
        """What trains, and what statistics move, by name."""
        kept = self.tuned.state_dict().keys()
        return {**self.weights(), **{name: buffer for name, buffer in self.trained.named_buffers() if name in kept}}


def layout_of(tuned: TunedModel, processes: Any, *, shard: bool) -> Layout:
    """Whole weights, or parted ones if there is more than one process to part them over."""
    return Parted(tuned, processes) if shard and processes.num_processes > 1 else Layout(tuned, processes)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process has a part as a whole one; any other as it is. All processes call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def laid_out(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor on the device of another, and parted as that one is."""
    moved = value.to(like.device, like.dtype)
    if not isinstance(like, DTensor):
        return moved
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
