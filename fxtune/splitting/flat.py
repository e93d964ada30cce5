"""Nested regions written out as one graph, over the modules and weights of the root."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import fx

from fxtune.tracing import ENTER, LEAVE, Region
from fxtune.view import join

Markers = tuple[fx.Node, ...]
"""The nodes that open the contexts in which a node runs, outermost first."""


def flatten(root: Region) -> fx.Graph:
    """One graph that computes what the nested graphs of a captured model do.

    Its targets are paths from the root: `call_module` names live leaves, `get_attr` weights or modules. Where a node
    came from stands in ``meta["origin"]``, region path and name. The nodes that open autocast and gradient contexts
    are kept, those that close them are not: ``meta["within"]`` of a node has what it runs in. What runs around the
    call of a region (its hooks, its checkpointing) is no part of it.
    """
    graph = fx.Graph()
    inputs = []
    for node in root.graph.nodes:
        if node.op == "placeholder":
            made = graph.placeholder(node.name)
            made.meta = {"val": node.meta.get("val"), "within": (), "origin": ("", node.name)}
            inputs.append(made)
    graph.output(_Reader(graph).read(root, "", inputs, ()))
    return graph


class _Reader:
    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._state: dict[str, fx.Node] = {}

    def read(self, region: fx.GraphModule, path: str, inputs: list[Any], around: Markers) -> Any:
        """Writes one region out; gives what it returns."""
        env: dict[fx.Node, Any] = {}
        given = iter(inputs)
        within = around
        for node in region.graph.nodes:
            if node.op == "placeholder":
                env[node] = next(given)
            elif node.op == "output":
                return fx.node.map_arg(node.args[0], env.__getitem__)
            elif node.target is LEAVE:
                within = within[:-1]
            else:
                env[node] = self._node(region, path, node, env, within)
                if node.target in ENTER.values():
                    within = (*within, env[node])
        raise AssertionError(f"{path or 'the root'} returns nothing")

    def _node(
        self, region: fx.GraphModule, path: str, node: fx.Node, env: Mapping[fx.Node, Any], within: Markers
    ) -> Any:
        args: Any = fx.node.map_arg(node.args, env.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, env.__getitem__)
        if node.op == "call_function":
            if node.target is operator.getitem and not isinstance(args[0], fx.Node):
                return args[0][args[1]]  # of a tuple that a region returned
            return self._made(node, node.target, args, kwargs, path, within)
        target = join(path, str(node.target))
        if node.op == "get_attr":
            if target not in self._state:
                self._state[target] = self._made(node, target, (), {}, path, ())
            return self._state[target]
        called = region.get_submodule(str(node.target))
        if isinstance(called, Region):
            return self.read(called, target, list(args), within)
        return self._made(node, target, args, kwargs, path, within)

    def _made(self, node: fx.Node, target: Any, args: Any, kwargs: Any, path: str, within: Markers) -> fx.Node:
        made = self._graph.create_node(node.op, target, args, kwargs, name=node.name)
        made.meta = {**node.meta, "within": within, "origin": (path, node.name)}
        return made
