"""Memory as it is measured on real tensors: what autograd saves, and what the CPU's allocator gives out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

_DONE = "the forward is done"


def saved_bytes(model: nn.Module, loss: Callable[[], Tensor]) -> int:
    """The distinct memory of all tensors that autograd packs in a forward, the model's own aside."""
    alive, kept = _alive(model), {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in alive:
            kept[storage.data_ptr()] = storage  # kept, so that its address is not given out again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return sum(storage.nbytes() for storage in kept.values())


def held_bytes(loss: Callable[[], Tensor]) -> int:
    """What the allocator has given out in a forward and not got back while the loss is held."""

    def run() -> None:
        held = loss()
        with record_function(_DONE):
            pass
        del held

    total = 0
    for name, change in _changes(run):
        if name == _DONE:
            return total
        total += change
    raise AssertionError("the profiler lost a mark")


def peak_bytes(model: nn.Module, steps: Callable[[], None]) -> int:
    """The most that lies in memory during steps: the model, its gradients, the optimizer's state, and what is saved."""
    running = most = sum(_alive(model).values())
    for _, change in _changes(steps):
        running += change
        most = max(most, running)
    return most


def _alive(model: nn.Module) -> dict[int, int]:
    """Address and size of what the model holds."""
    storages = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _changes(run: Callable[[], None]) -> Iterator[tuple[str, int]]:
    """Each change of the allocator in the order of time, by bytes; marks by their names."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() in ("[memory]", _DONE):
            yield event.name(), event.nbytes() if event.name() == "[memory]" else 0
