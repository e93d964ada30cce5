"""Which nodes of a graph may share memory, and which write to it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn

from fxtune.tracing import ByMode
from fxtune.vocabulary import CAST, DROPOUT, LAYOUT, PART, base_name

_HANDING_ON = (LAYOUT | CAST | DROPOUT | PART) - {"clone"}


class Memory:
    """The memory behind the values of a graph.

    Where it is not certain that a value has memory of its own (layout, casts that may change nothing, dropout that is
    off, a module without weights), it is taken to have its first operand's: the worst that follows is a copy too many.

    Args:
        graph: a flat graph.
        root: its module.
    """

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self._root = root
        self._place = {node: i for i, node in enumerate(graph.nodes)}
        self._owner: dict[fx.Node, fx.Node] = {}
        self._writes: dict[fx.Node, list[fx.Node]] = {}
        for node in graph.nodes:
            operands = node.all_input_nodes
            self._owner[node] = self._owner[operands[0]] if operands and self._hands_on(node) else node
            for written in self._written(node):
                self._writes.setdefault(self._owner[written], []).append(node)

    def writers(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that write to a value's memory once it is computed, in order."""
        return [w for w in self._writes.get(self._owner[node], ()) if self._place[w] > self._place[node]]

    def owner(self, node: fx.Node) -> fx.Node:
        """The value that first had this one's memory."""
        return self._owner[node]

    def written(self) -> Iterator[tuple[fx.Node, fx.Node]]:
        """Every node that writes, with the value that first had the memory that it writes to."""
        for owner, writers in self._writes.items():
            for writer in writers:
                yield writer, owner

    def _hands_on(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return next(self._root.get_submodule(str(node.target)).parameters(), None) is None
        if not isinstance(node.target, torch._ops.OpOverload):
            return node.op == "call_function" and node.target is not getattr
        aliased = any(result.alias_info is not None for result in node.target._schema.returns)
        return aliased or base_name(node.target) in _HANDING_ON

    def _written(self, node: fx.Node) -> list[fx.Node]:
        if node.op == "call_module":
            return list(node.all_input_nodes) if any(map(_writes, self._bodies(node))) else []
        return overwritten(node)

    def _bodies(self, node: fx.Node) -> Iterator[fx.Graph]:
        module = self._root.get_submodule(str(node.target))
        if isinstance(module, ByMode):
            yield from (module.in_training.graph, module.in_evaluation.graph)
        elif (body := node.meta.get("body")) is not None:
            yield body


def overwritten(node: fx.Node) -> list[fx.Node]:
    """The operands that an in-place operator writes to."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return []
    given = zip(node.target._schema.arguments, node.args, strict=False)
    return [value for argument, value in given if argument.is_write and isinstance(value, fx.Node)]


def _writes(body: fx.Graph) -> bool:
    return any(overwritten(node) for node in body.nodes)
