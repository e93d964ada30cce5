"""Memory as it is measured on real tensors: what autograd saves, and what the CPU's allocator gives out."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._pytree import tree_leaves

_AFTER_FORWARD = "the forward is done"


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

    def alive(self) -> dict[int, int]:
        """Address and size of what lives anyway."""
        tensors = [*self.model.parameters(), *self.model.buffers(), *tree_leaves((self.args, self.kwargs))]
        return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor)}


def saved_bytes(training: Training) -> int:
    """The distinct memory of all tensors that autograd packs, without what lives anyway."""
    alive, kept = training.alive(), {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in alive and storage.nbytes():
            kept[storage.data_ptr()] = storage  # kept, so that its address is not given out again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        training.loss()
    return sum(storage.nbytes() for storage in kept.values())


def peak_bytes(training: Training, steps: int = 2) -> int:
    """The most that lay in memory during training steps with AdamW."""
    optimizer = torch.optim.AdamW([p for p in training.model.parameters() if p.requires_grad])

    def run() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            training.loss().backward()
            optimizer.step()

    running = sum(training.alive().values())
    return max(running := running + change for _, change in _allocations(run))


def cuda_peak_bytes(training: Training, steps: int = 2) -> int:
    """The same on the GPU that the model is on, by its allocator; the original's copies of what trains aside."""
    gc.collect()
    torch.cuda.empty_cache()
    others = torch.cuda.memory_allocated() - sum(training.alive().values())
    torch.cuda.reset_peak_memory_stats()
    optimizer = torch.optim.AdamW([p for p in training.model.parameters() if p.requires_grad])
    for _ in range(steps):
        optimizer.zero_grad()
        training.loss().backward()
        optimizer.step()
    return torch.cuda.max_memory_allocated() - others


def held_bytes(training: Training) -> int:
    """What the allocator has given out in a forward and not got back when only the loss is held, that itself aside."""

    def run() -> None:
        loss = training.loss()
        with record_function(_AFTER_FORWARD):
            pass
        del loss

    held = 0
    for name, change in _allocations(run):
        if name == _AFTER_FORWARD:
            return held - torch.float32.itemsize
        held += change
    raise AssertionError("the profiler lost a mark")


def _allocations(run: Callable[[], None]) -> Iterator[tuple[str, int]]:
    """Each change of the CPU's allocator in the order of time, by bytes; marks by their names."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    wanted = [event for event in events if event.name() in ("[memory]", _AFTER_FORWARD)]
    for event in sorted(wanted, key=lambda event: event.start_ns()):
        yield event.name(), event.nbytes() if event.name() == "[memory]" else 0
