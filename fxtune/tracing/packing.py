"""Graphs as plain lists, for pickles.

A pickled ``GraphModule`` of torch's own is traced anew on loading, which fails on nested ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate

from fxtune.tracing.contexts import new_graph


@dataclass(frozen=True)
class Reference:
    """The n-th node of the list."""

    index: int


@dataclass(frozen=True)
class Operator:
    """An ATen operator by name."""

    namespace: str
    name: str
    overload: str


def pack(graph: Graph) -> list[tuple[Any, ...]]:
    """(op, name, target, args, kwargs, packed body or None) for each node. Values (``meta["val"]``) stay behind."""
    index = {node: Reference(i) for i, node in enumerate(graph.nodes)}

    def pick(value: Any) -> Any:
        return index[value] if isinstance(value, Node) else value

    packed: list[tuple[Any, ...]] = []
    for node in graph.nodes:
        target: Any = node.target
        if isinstance(target, OpOverload):
            target = Operator(target.namespace, target._opname, target._overloadname)
        body = node.meta.get("body")
        args, kwargs = map_aggregate(node.args, pick), map_aggregate(node.kwargs, pick)
        packed.append((node.op, node.name, target, _plain(args), _plain(kwargs), body and pack(body)))
    return packed


def unpack(packed: list[tuple[Any, ...]]) -> Graph:
    graph = new_graph()
    nodes: list[Node] = []

    def put(value: Any) -> Any:
        return nodes[value.index] if isinstance(value, Reference) else value

    for op, name, target, args, kwargs, body in packed:
        if isinstance(target, Operator):
            target = getattr(getattr(getattr(torch.ops, target.namespace), target.name), target.overload)
        node = graph.create_node(op, target, map_aggregate(args, put), map_aggregate(kwargs, put), name=name)
        if body is not None:
            node.meta["body"] = unpack(body)
        nodes.append(node)
    return graph


def _plain(value: Any) -> Any:
    """fx keeps arguments in immutable containers of its own."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, slice):
        return value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return tuple(_plain(item) for item in value) if type(value) is tuple else value
