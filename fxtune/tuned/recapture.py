"""One capture for several tuned models of the same model: a copy of the graph, put onto another twin."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import nn

from fxtune.tracing import Region, call_inputs
from fxtune.tuned.twin import structural_twin


@dataclass
class Kept:
    """A capture as it was before anything was rewritten in it."""

    twin: nn.Module
    graph: Region
    called: frozenset[str]


_kept: ContextVar[list[Kept] | None] = ContextVar("kept", default=None)


@contextmanager
def one_capture() -> Iterator[None]:
    """While on, `apply` captures a model once and copies the capture from then on.

    Capturing is nearly all of its time. Another head, or inputs that the graph is not right for, are another capture.
    """
    token = _kept.set([])
    try:
        yield
    finally:
        _kept.reset(token)


def kept_for(twin: nn.Module, example_inputs: Any) -> tuple[Region, frozenset[str]] | None:
    """The kept capture of such a model that takes such inputs, put onto this twin; None if there is none."""
    alike = [kept for kept in _kept.get() or () if _outline(kept.twin) == _outline(twin)]
    if not alike:
        return None
    inputs = call_inputs(twin, example_inputs)
    kept = next((kept for kept in alike if kept.graph.signature.accepts(*inputs) is None), None)
    return (onto(twin, kept.twin, kept.graph), kept.called) if kept else None


def keep(twin: nn.Module, graph: Region, called: frozenset[str]) -> None:
    """Keeps the capture of the twin, if captures are kept."""
    kept = _kept.get()
    if kept is not None:
        other = structural_twin(twin)
        kept.append(Kept(other, onto(other, twin, graph), called))


def onto(twin: nn.Module, source: nn.Module, graph: Region) -> Region:
    """A copy of `graph`, which runs the modules and tensors of `source`, that runs those of `twin`."""
    memo: dict[int, Any] = {}
    for theirs, ours in zip(source.modules(), twin.modules(), strict=True):
        memo[id(theirs)] = ours
        for name in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
            memo[id(theirs.__dict__[name])] = ours.__dict__[name]
        for mine, yours in ((theirs._parameters, ours._parameters), (theirs._buffers, ours._buffers)):
            memo |= {id(tensor): yours[name] for name, tensor in mine.items() if tensor is not None}
    copied: Region = copy.deepcopy(graph, memo)
    return copied


def _outline(model: nn.Module) -> list[tuple[object, ...]]:
    """Every module and every tensor of it, as far as a capture depends on them."""
    modules: list[tuple[object, ...]] = [(path, type(module)) for path, module in model.named_modules()]
    tensors = (*model.named_parameters(), *model.named_buffers())
    return [*modules, *((name, tensor.shape, tensor.dtype) for name, tensor in tensors)]
