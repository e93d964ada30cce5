"""A model with the inputs of its training steps, and the memory that these take on real tensors."""

import gc
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fxtune import testing


@dataclass(frozen=True)
class Training:
    """A model with the inputs of its steps; what trains requires grad."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    autocast: torch.dtype | None = None

    def loss(self) -> Tensor:
        with torch.autocast("cpu", self.autocast, enabled=self.autocast is not None):
            outputs = self.model(*self.args, **self.kwargs)
        return torch.stack([leaf.sum() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]).sum()

    def alive(self) -> list[Tensor]:
        """What lives anyway."""
        return testing.tensors(self.model, self.args, self.kwargs)

    def steps(self, count: int = 2) -> None:
        """With AdamW."""
        optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad])
        for _ in range(count):
            optimizer.zero_grad()
            self.loss().backward()
            optimizer.step()


def saved_bytes(training: Training) -> int:
    return testing.saved_bytes(training.loss, training.alive())


def held_bytes(training: Training) -> int:
    return testing.held_bytes(training.loss)


def peak_bytes(training: Training) -> int:
    return testing.peak_bytes(training.steps, training.alive())


def cuda_peak_bytes(training: Training) -> int:
    """On the GPU that the model is on, by its allocator; the original's copies of what trains aside."""
    gc.collect()
    torch.cuda.empty_cache()
    own = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in training.alive()}
    others = torch.cuda.memory_allocated() - sum(own.values())
    torch.cuda.reset_peak_memory_stats()
    training.steps()
    return torch.cuda.max_memory_allocated() - others
