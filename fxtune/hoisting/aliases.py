"""Values whose memory is overwritten: they stay as they are, and so does all that may lie in the same memory."""

from __future__ import annotations

import operator
from collections.abc import Iterator

from torch import fx, nn
from torch._ops import OpOverload

from fxtune.hoisting.call import is_opaque, overwrites
from fxtune.hoisting.regions import runs
from fxtune.vocabulary import CAST, DROPOUT, LAYOUT, PART, base_name

_SHARING = LAYOUT | PART | CAST | DROPOUT | {"detach", "contiguous"}
"""Operators whose result may lie in the memory of their operand, whatever their schema says."""


def overwritten(graph: fx.Graph, owner: nn.Module) -> frozenset[fx.Node]:
    """The nodes, of a graph and of all that it calls, whose values may lie in memory that is overwritten."""
    memory = _Memory()
    memory.graph(graph, owner)
    return memory.overwritten()


def writes(graph: fx.Graph) -> bool:
    """Whether a module's own operators overwrite anything."""
    return any(overwrites(node) for node in graph.nodes)


class _Memory:
    """Sets of nodes that may share memory, kept as a forest."""

    def __init__(self) -> None:
        self._parent: dict[fx.Node, fx.Node] = {}
        self._written: list[fx.Node] = []

    def overwritten(self) -> frozenset[fx.Node]:
        written = {self._find(node) for node in self._written}
        return frozenset(node for node in list(self._parent) if self._find(node) in written)

    def graph(self, graph: fx.Graph, owner: nn.Module) -> None:
        for node in graph.nodes:
            self._find(node)
            inner = list(runs(node, owner)) if node.op == "call_module" else []
            for called, module in inner:
                self._call(node, called, module)
            if (node.op == "call_module" and not inner) or (node.op == "call_function" and _may_share(node)):
                for operand in node.all_input_nodes:
                    self._join(node, operand)
            if overwrites(node):
                self._written.extend(_targets(node))

    def _call(self, node: fx.Node, called: fx.Graph, module: nn.Module) -> None:
        self.graph(called, module)
        inputs = (inner for inner in called.nodes if inner.op == "placeholder")
        for inner, argument in zip(inputs, node.args, strict=False):
            if isinstance(argument, fx.Node):
                self._join(inner, argument)
        for result in called.output_node().all_input_nodes:
            self._join(node, result)

    def _find(self, node: fx.Node) -> fx.Node:
        while (parent := self._parent.setdefault(node, node)) is not node:
            self._parent[node] = self._parent[parent]
            node = parent
        return node

    def _join(self, a: fx.Node, b: fx.Node) -> None:
        self._parent[self._find(a)] = self._find(b)


def _may_share(node: fx.Node) -> bool:
    if not isinstance(node.target, OpOverload):
        return node.target is operator.getitem or is_opaque(node)
    views = any(result.alias_info is not None for result in node.target._schema.returns)
    return views or base_name(node.target) in _SHARING


def _targets(node: fx.Node) -> Iterator[fx.Node]:
    assert isinstance(node.target, OpOverload)
    arguments = node.target._schema.arguments
    given = [*zip(arguments, node.args, strict=False), *((a, node.kwargs.get(a.name)) for a in arguments)]
    for argument, value in given:
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, fx.Node):
            yield value
