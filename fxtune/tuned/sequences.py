"""Indexing: ``tuned.blocks[0]`` where `blocks` was a sequence of modules that is called as one, and is a Region now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from fxtune.tracing import Region


def index_like(graph: nn.Module, twin: nn.Module) -> None:
    """Let each Region be indexed, measured and iterated where its counterpart in the twin can be."""
    counterparts = dict(twin.named_modules(remove_duplicate=False))
    for path, region in graph.named_modules(remove_duplicate=False):
        counterpart: Any = counterparts.get(path)
        if isinstance(region, Region) and isinstance(counterpart, nn.Sequential):
            _index_by(region, tuple(counterpart._modules))


def _index_by(region: Region, names: tuple[str, ...]) -> None:
    """Python looks these methods up on the class; every GraphModule has a class of its own, so that is safe."""

    def items(self: nn.Module) -> list[nn.Module | None]:
        return [self._modules[name] for name in names]

    def get(self: nn.Module, index: int | slice) -> Any:
        return items(self)[index]

    def length(self: nn.Module) -> int:
        return len(names)

    def iterate(self: nn.Module) -> Iterator[nn.Module | None]:
        return iter(items(self))

    own = type(region)
    for method, function in (("__getitem__", get), ("__len__", length), ("__iter__", iterate)):
        setattr(own, method, function)
