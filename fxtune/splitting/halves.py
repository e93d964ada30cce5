"""Writing the two halves of a cut graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fxtune.splitting.cut import Cut
from fxtune.splitting.flat import Markers
from fxtune.splitting.kinds import is_tensor, only_rearranges
from fxtune.tracing import LEAVE, new_graph
from fxtune.view import written


class Half:
    """A graph that is written from nodes of a flat one, in the contexts that these run in."""

    def __init__(self) -> None:
        self.graph = new_graph()
        self.env: dict[fx.Node, fx.Node] = {}
        self._open: list[tuple[fx.Node, fx.Node]] = []

    def copy(self, node: fx.Node) -> fx.Node:
        """Writes a node, with what stands for its operands here."""
        self._within(node.meta["within"])
        return self.again(node)

    def again(self, node: fx.Node) -> fx.Node:
        """Writes a node wherever this graph has come to."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.value)
        made = self.graph.create_node(node.op, node.target, args, kwargs, name=node.name)
        made.meta = dict(node.meta)
        self.env[node] = made
        return made

    def value(self, node: fx.Node) -> fx.Node:
        """What stands for a flat node here; weights are read when they are first wanted."""
        return self.env[node] if node in self.env else self.again(node)

    def copy_of(self, node: fx.Node) -> fx.Node:
        """A copy of a value as it is now: what is written to its memory later does not reach the copy."""
        return self.graph.call_function(torch.ops.aten.clone.default, (self.value(node),))

    def finish(self, results: Any) -> fx.Graph:
        """Closes what is open, and returns results."""
        self._within(())
        self.graph.output(results)
        self.graph.lint()
        return self.graph

    def _within(self, markers: Markers) -> None:
        """Opens and closes contexts so that just these hold for what is written next."""
        while [flat for flat, _ in self._open] != list(markers[: len(self._open)]):
            self.graph.call_function(LEAVE, (self._open.pop()[1],))
        for marker in markers[len(self._open) :]:
            self._open.append((marker, self.again(marker)))


def write_trunk(cut: Cut, crossing: Sequence[fx.Node]) -> fx.Graph:
    """The graph from the model's inputs to the values that cross: a tuple of them."""
    half = Half()
    needed = _needed(cut, crossing)
    saved: dict[fx.Node, fx.Node] = {}
    waiting: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in crossing:
        if (reader := cut.must_be_saved(node)) is not None:  # it crosses as it is when the branch reads it
            waiting[reader].append(node)
    for node in cut.graph.nodes:
        saved |= {value: half.copy_of(value) for value in waiting[node]}
        if node.op == "placeholder" or node in needed:
            half.copy(node)
    return half.finish(tuple(saved.get(node) or half.value(node) for node in crossing))


def _needed(cut: Cut, crossing: Sequence[fx.Node]) -> set[fx.Node]:
    """All that these values are made of, and what writes to the memory of any of it; weights aside."""
    needed: set[fx.Node] = set()
    pending = list(crossing)
    while pending:
        while pending:
            node = pending.pop()
            if node not in needed and node.op != "get_attr":
                needed.add(node)
                pending += node.all_input_nodes
                pending += [operand for marker in node.meta["within"] for operand in marker.all_input_nodes]
        owners = {cut.memory.owner(node) for node in needed}
        writing = (writer for writer, owner in cut.memory.written() if owner in owners)
        pending = [writer for writer in writing if writer not in needed and writer not in cut.branch]
    return needed


def write_branch(cut: Cut) -> tuple[fx.Graph, list[fx.Node]]:
    """The graph from the values that cross to the model's results, and these values.

    Sizes, devices and dtypes are worked out from the values that cross. Where none of these tells one, the tensor that
    tells it crosses too.
    """
    half = _Branch(cut)
    for node in cut.graph.nodes:
        if node in cut.branch:
            half.copy(node)
    results = fx.node.map_arg(cut.graph.output_node().args[0], half.value)
    return half.finish(results), half.crossing


class _Branch(Half):
    def __init__(self, cut: Cut) -> None:
        super().__init__()
        self._cut = cut
        self._last: fx.Node | None = None
        self.crossing: list[fx.Node] = []
        for node in cut.crossing:
            self._cross(node)

    def value(self, node: fx.Node) -> fx.Node:
        if node in self.env:
            return self.env[node]
        if node in self._cut.branch or node.op == "get_attr":
            return self.again(node)
        if not is_tensor(node):
            return self._worked_out(node)
        origin = self._cut.standing_for(node)
        if origin is not node:
            return self.again(node) if only_rearranges(node) else self.value(origin)
        source = self._cut.source_of_part(node)
        return self._cross(node) if source not in self.env else self.again(node)

    def _cross(self, node: fx.Node) -> fx.Node:
        """A new input that stands for a value of the trunk, after the others."""
        first = next(iter(self.graph.nodes), None)
        with self.graph.inserting_after(self._last) if self._last else self.graph.inserting_before(first):
            self._last = self.graph.placeholder(node.name)
        self._last.meta = dict(node.meta)
        self.crossing.append(node)
        self.env[node] = self._last
        return self._last

    def _worked_out(self, node: fx.Node) -> fx.Node:
        """A size, a device or a dtype, or what is computed of such; a tuple of tensors is made anew."""
        known = None if not node.args or node.args[0] in self.env else self._told_by_another(node)
        if known is None:
            return self.again(node)
        self.env[node] = self.graph.call_function(node.target, known)  # type: ignore[arg-type]
        return self.env[node]

    def _told_by_another(self, node: fx.Node) -> tuple[fx.Node, Any] | None:
        """A value that crosses and tells the same, with what is asked of it."""
        for other in self.crossing:
            val = other.meta.get("val")
            if not isinstance(val, torch.Tensor):
                continue
            if node.target is torch.ops.aten.sym_size.int:
                sizes = [written(size) for size in val.shape]
                if (size := written(node.meta.get("val"))) in sizes:
                    return self.env[other], sizes.index(size)
            elif node.target is getattr and isinstance(node.args[0], fx.Node) and is_tensor(node.args[0]):
                told = node.args[0].meta.get("val")
                if node.args[1] == "device" or getattr(told, "dtype", None) == val.dtype:
                    return self.env[other], node.args[1]
        return None
