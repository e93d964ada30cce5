"""One graph while it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import fx


class Growing:
    """A region's graph, in which nodes are known by the names that they had when the patch was planned."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self._original: dict[str, fx.Node] = {node.name: node for node in graph.nodes}
        self._current: dict[fx.Node, fx.Node] = {}
        self._copies: dict[fx.Node, fx.Node] = {}

    def original(self, name: str) -> fx.Node:
        """The node that the model itself computes under this name."""
        return self._original[name]

    def current(self, name: str) -> fx.Node:
        """The node that has this name's value as the graph is now, tuned or not."""
        node = self._original[name]
        return self._current.get(node, node)

    def replace(self, name: str, readers: Iterable[fx.Node], after: fx.Node) -> None:
        """Gives `readers` the node `after` instead of the value called `name`, whose value that is from now on."""
        before = self.current(name)
        after.meta.setdefault("val", before.meta.get("val"))
        for reader in readers:
            reader.replace_input_with(before, after)
        self._current[self._original[name]] = after

    def copy_of(self, name: str) -> fx.Node:
        """A copy of the value, taken right behind its producer: later it may be overwritten."""
        source = self.current(name)
        if source not in self._copies:
            copy = self.behind(source, torch.ops.aten.clone.default, (source,))
            copy.meta["val"] = source.meta.get("val")
            self._copies[source] = copy
        return self._copies[source]

    def behind(
        self,
        node: fx.Node,
        target: Callable[..., object] | str,
        args: tuple[object, ...],
        kwargs: Mapping[str, object] | None = None,
    ) -> fx.Node:
        """A new node right behind `node`; a text names a module."""
        with self.graph.inserting_after(node):
            kind = "call_module" if isinstance(target, str) else "call_function"
            made: fx.Node = self.graph.create_node(kind, target, args, dict(kwargs or {}))  # type: ignore[arg-type]
        return made

    def drop(self, node: fx.Node) -> None:
        """Erases a node that nobody reads any more, and what only it read."""
        if node.users or node.op == "placeholder":
            return
        operands = list(node.all_input_nodes)
        self.graph.erase_node(node)
        for operand in operands:
            if not operand.is_impure():
                self.drop(operand)
