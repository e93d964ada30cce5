"""What a half computes, and with what: whatever its nodes are called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxtune.tracing import Region


def structure_of(half: Region) -> str:
    """What a half computes, a line for each node, with numbers for names."""
    return "\n".join(lines_of(half.graph, half))


def lines_of(graph: fx.Graph, root: nn.Module) -> Iterator[str]:
    """What each node of a flat graph over a module computes, with numbers for names."""
    place = {node: f"%{i}" for i, node in enumerate(graph.nodes)}
    return (f"{place[node]} = {operation(node, root, place)}" for node in graph.nodes)


def operation(node: fx.Node, half: nn.Module, place: Mapping[fx.Node, str]) -> str:
    """What a node computes, of values that have names in `place`."""
    if node.op == "placeholder":
        return "input"
    called = _called(half.get_submodule(str(node.target))) if node.op == "call_module" else ""
    return f"{node.op} {_target(node)} {_written((node.args, node.kwargs), place)} {called}"


def tensors_of(half: Region) -> dict[str, Tensor]:
    """Every weight and buffer that a half computes with, by name."""
    return dict(_tensors(half))


def _tensors(half: Region) -> Iterator[tuple[str, Tensor]]:
    for target in dict.fromkeys(str(n.target) for n in half.graph.nodes if n.op in ("call_module", "get_attr")):
        home, _, last = target.rpartition(".")
        owner: Any = getattr(half.get_submodule(home), last)
        if isinstance(owner, Tensor):
            yield target, owner
        elif isinstance(owner, nn.Module):
            state = {**dict(owner.named_parameters()), **dict(owner.named_buffers())}
            yield from ((f"{target}.{name}", tensor) for name, tensor in state.items())


def _called(module: nn.Module) -> str:
    """A module as it prints itself, with the code of the graphs inside of it."""
    return _printed(module) + "".join(inner.code for inner in module.modules() if isinstance(inner, fx.GraphModule))


def _printed(module: nn.Module) -> str:
    """As its class prints it: a library may put another `extra_repr` on a module, to tell how its weights are kept."""
    if module._modules or "extra_repr" not in vars(module):
        return repr(module)
    return f"{type(module).__name__}({type(module).extra_repr(module)})"


def _target(node: fx.Node) -> str:
    target: Any = node.target
    if isinstance(target, str | torch._ops.OpOverload):
        return str(target)
    return f"{target.__module__}.{target.__qualname__}" if hasattr(target, "__qualname__") else str(target)


def _written(value: Any, place: Mapping[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return place[value]
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_written(item, place)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"({', '.join(_written(item, place) for item in value)})"
    if isinstance(value, slice):
        return f"slice{_written((value.start, value.stop, value.step), place)}"
    return repr(value)
