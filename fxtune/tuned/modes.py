"""train() and eval() on captured graphs: modes follow the twin, and normalisation statistics keep still."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node

from fxtune.tracing import Region

_STATISTICS: dict[Any, int] = {
    torch.ops.aten.batch_norm: 3,
    torch.ops.aten.native_batch_norm: 3,
    torch.ops.aten._native_batch_norm_legit: 3,
    torch.ops.aten.cudnn_batch_norm: 3,
    torch.ops.aten.instance_norm: 3,
}
"""Operators that move running statistics in training, and the position of the running mean among their arguments."""


def leaf_calls(root: nn.Module) -> Iterator[tuple[Region, Node, nn.Module]]:
    """Every call of a module that is no Region, in every Region of the tree."""
    modules = dict(root.named_modules(remove_duplicate=False))
    for path, region in root.named_modules():
        if isinstance(region, Region):
            for node in region.graph.nodes:
                if node.op == "call_module":
                    module = modules[f"{path}.{node.target}" if path else str(node.target)]
                    if not isinstance(module, Region):
                        yield region, node, module


def tracks_statistics(body: Graph) -> bool:
    """Does the call move running statistics when in training mode?"""
    for node in body.nodes:
        position = _STATISTICS.get(getattr(node.target, "overloadpacket", None))
        if position is not None and len(node.args) > position and isinstance(node.args[position], Node):
            return True
    return False


def batch_norms(root: nn.Module) -> list[nn.Module]:
    """The modules whose running statistics training would move, known by what they compute and not by their class."""
    found = {id(module): module for _, node, module in leaf_calls(root) if _has_statistics(node)}
    return list(found.values())


def _has_statistics(node: Node) -> bool:
    body = node.meta.get("body")
    return body is not None and tracks_statistics(body)


def still_modules(root: nn.Module) -> list[nn.Module]:
    """The modules of the trunk of a bypass, which is never in training mode."""
    return list({id(module): module for _, node, module in leaf_calls(root) if node.meta.get("still")}.values())


def freeze(module: nn.Module) -> None:
    """Keep a module in eval mode, whoever calls train() on it or above it."""
    module.__dict__["train"] = functools.partial(_train_below, module)
    module.training = False


def _train_below(module: nn.Module, mode: bool = True) -> nn.Module:
    for child in module.children():
        child.train(mode)
    module.training = False
    return module


def follow(graph: nn.Module, twin: nn.Module) -> None:
    """Give every module of a captured graph the mode of its counterpart in the twin, or of the region that it stands
    in.

    The twin is asked because the original's own classes may override train().
    """
    counterparts = dict(twin.named_modules(remove_duplicate=False))
    modules = dict(graph.named_modules(remove_duplicate=False))
    for path, module in modules.items():
        counterpart = counterparts.get(path)
        if counterpart is module or "train" in module.__dict__:
            continue
        if counterpart is not None:
            module.training = counterpart.training
        else:
            module.training = modules[path.rpartition(".")[0]].training


def moving_buffers(root: nn.Module, *, statistics: bool) -> list[torch.Tensor]:
    """The buffers that training writes to: running statistics if asked for, and what in-place operators write."""
    found: list[torch.Tensor] = []
    for region, node, module in leaf_calls(root):
        if _has_statistics(node):
            if statistics:
                found += [*module.buffers(), *(buffer for arg in node.args for buffer in _buffer(region, arg))]
        elif "body" in node.meta:
            found += _written_by(region, node, module)
    for home in root.modules():
        if isinstance(home, Region):
            found += [buffer for target in _written(home.graph) for buffer in _buffer(home, target)]
    return found


def _written_by(region: Region, node: Node, module: nn.Module) -> list[torch.Tensor]:
    """The buffers that one call of a leaf writes to: the leaf's own, or the region's that it is called with."""
    body: Graph = node.meta["body"]
    arguments = dict(zip((inner for inner in body.nodes if inner.op == "placeholder"), node.args, strict=False))
    found: list[torch.Tensor] = []
    for target in _written(body):
        found += _buffer(region, arguments[target]) if target in arguments else _buffer(module, target)
    return found


def _written(graph: Graph) -> Iterator[Node]:
    """The nodes that in-place operators write to."""
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None:
            continue
        for argument, value in zip(schema.arguments, node.args, strict=False):
            if isinstance(value, Node) and argument.alias_info is not None and argument.alias_info.is_write:
                yield value


def _buffer(owner: nn.Module, value: Any) -> list[torch.Tensor]:
    if not isinstance(value, Node) or value.op != "get_attr":
        return []
    path, _, name = str(value.target).rpartition(".")
    buffer = owner.get_submodule(path)._buffers.get(name)
    return [] if buffer is None else [buffer]
