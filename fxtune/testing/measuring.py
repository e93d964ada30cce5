"""Memory as it is measured on real tensors: what autograd saves, and what the CPU's allocator gives out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._pytree import tree_leaves

_DONE = "the forward is done"


def saved_bytes(loss: Callable[[], Tensor], alive: Iterable[Tensor] = ()) -> int:
    """The distinct memory of all tensors that autograd packs in a forward, bytes.

    Args:
        loss: the forward.
        alive: what lives anyway and is not counted: the model's weights and buffers, its inputs.
    """
    anyway, kept = _sizes(alive), {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in anyway and storage.nbytes():
            kept[storage.data_ptr()] = storage  # kept, so that its address is not given out again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return sum(storage.nbytes() for storage in kept.values())


def held_bytes(loss: Callable[[], Tensor]) -> int:
    """What the allocator has given out in a forward and not got back while the loss is held, that itself aside; bytes.

    Args:
        loss: the forward, run once before: what is made at the first call alone would count, too.
    """
    own = 0

    def run() -> None:
        nonlocal own
        held = loss()
        with record_function(_DONE):
            pass
        own = held.nbytes

    total = 0
    for name, change in _changes(run):
        if name == _DONE:
            return total - own
        total += change
    raise AssertionError("the profiler lost a mark")


def peak_bytes(steps: Callable[[], object], alive: Iterable[Tensor] = ()) -> int:
    """The most that lies in memory during training steps, bytes.

    Args:
        steps: forwards, backwards and the optimizer's.
        alive: what lives already: the model's weights and buffers, its inputs.
    """
    running = most = sum(_sizes(alive).values())
    for _, change in _changes(steps):
        running += change
        most = max(most, running)
    return most


def tensors(*holders: nn.Module | object) -> list[Tensor]:
    """Those of models, their weights and buffers, and of inputs in any nesting."""
    found: list[Tensor] = []
    for holder in holders:
        if isinstance(holder, nn.Module):
            found += [*holder.parameters(), *holder.buffers()]
        else:
            found += [leaf for leaf in tree_leaves(holder) if isinstance(leaf, Tensor)]
    return found


def _sizes(alive: Iterable[Tensor]) -> dict[int, int]:
    """Of the distinct storages, by address."""
    storages = [tensor.untyped_storage() for tensor in alive]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _changes(run: Callable[[], object]) -> Iterator[tuple[str, int]]:
    """Each change of the CPU's allocator in the order of time, by bytes; the mark by its name."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    wanted = [event for event in events if event.name() in ("[memory]", _DONE)]
    for event in sorted(wanted, key=lambda event: event.start_ns()):
        yield event.name(), event.nbytes() if event.name() == "[memory]" else 0
