"""Modules that stay as they are, and functions: called on parts of their operands where they compute the same."""

from __future__ import annotations

import copy
from typing import Any

from torch import fx, nn

from fxtune.hoisting.aliases import overwritten, writes
from fxtune.hoisting.call import Moved, Want, is_tensor, op_of, overwrites, shape_of, walk
from fxtune.hoisting.narrowing import narrow
from fxtune.hoisting.needs import Flow, Scope
from fxtune.hoisting.part import WHOLE, Part, written
from fxtune.hoisting.simplified import simplified
from fxtune.hoisting.tracing import Traces, operands
from fxtune.vocabulary import LAYOUT, PART

UNFOLDED = LAYOUT | PART | {"linear", "addmm", "mm", "matmul", "add", "cat", "getitem", "sym_size"}
"""Operators that don't depend on mode or dtype: a call that runs these alone may be written as what it runs."""


class Calls:
    """Finds what a call needs by the laws of the operators that it runs.

    A module or a function can't be changed, only be given something else. So the graph that it runs must be the same
    for the part as for the whole, literals included. A folded module tells its graph; of a tuner it is traced.
    """

    def __init__(self, *, through_detach: bool) -> None:
        self.through_detach = through_detach
        self._traces = Traces()

    def call(self, node: fx.Node, owner: nn.Module, results: list[Part]) -> Moved | None:
        """The same call on parts of its operands, from which it computes these parts of its results."""
        if node.op == "call_module" and (body := node.meta.get("body")) is not None:
            module = owner.get_submodule(str(node.target))
            body = simplified(body)
            found = self._narrowed(body, module, results)
            if found is None or _code(found[0].graph) != _code(body):
                return None
            return _called(node, found[1])
        return None if overwrites(node) else self._traced(node, owner, results)

    def unfolded(self, node: fx.Node, owner: nn.Module, results: list[Part]) -> fx.Graph | None:
        """The graph to write in the place of a call, if its operators compute the parts from parts of what they read.

        That is so where a part of a module's weights is read, or a function takes other parts of a smaller operand.
        A module with hooks is called as it is, for them to run.
        """
        if node.op == "call_module":
            body, module = node.meta.get("body"), owner.get_submodule(str(node.target))
            graph = None if body is None or _hooked(module) else simplified(body)
        else:
            module, graph = owner, next(iter(self._graphs(node, owner)), None)
            if graph is not None and graph.find_nodes(op="get_attr"):
                return None
        if graph is None or not _written_anywhere(graph) or self._narrowed(graph, module, results) is None:
            return None
        return graph

    def _traced(self, node: fx.Node, owner: nn.Module, results: list[Part]) -> Moved | None:
        needs: list[list[Part]] = []
        for number, graph in enumerate(graphs := self._graphs(node, owner)):
            found = self._narrowed(graph, owner, results)
            if found is None:
                return None
            flow, parts = found
            if _code(flow.graph) != _code(graph):
                # Sizes that the code reads from its operands are literals in the trace.
                again = self._traces.of(node, owner, [input.meta["val"] for input in flow.inputs()])
                if len(again) != len(graphs) or _code(simplified(again[number])) != _code(flow.graph):
                    return None
            needs.append(parts)
        return _called(node, needs[0]) if needs and all(theirs == needs[0] for theirs in needs) else None

    def _graphs(self, node: fx.Node, owner: nn.Module) -> list[fx.Graph]:
        vals = [operand.meta["val"] for operand in operands(node)]
        return [simplified(graph) for graph in self._traces.of(node, owner, vals)]

    def _narrowed(self, graph: fx.Graph, owner: nn.Module, results: list[Part]) -> tuple[Flow, list[Part]] | None:
        """A copy of a graph that computes parts of its results, and what it needs; None if that is no less."""
        graph = copy.deepcopy(graph)
        returned = graph.output_node().args[0]
        if writes(graph) and overwritten(graph, owner) & {*graph.find_nodes(op="placeholder")}:
            return None
        if len(returned if isinstance(returned, tuple | list) else [returned]) != len(results):
            return None
        scope = Scope(self.through_detach, overwritten(graph, owner))
        flow = Flow(graph, owner, scope, results)
        if flow.stops:
            return None
        needs = [_part(flow.need(input), input, graph, results) for input in flow.inputs()]
        narrow(flow, needs)
        return flow, needs


def _part(need: Part | frozenset[int], input: fx.Node, graph: fx.Graph, results: list[Part]) -> Part:
    """What to give for an input. One whose numbers are not read is there for its sizes, which are the result's."""
    if isinstance(need, Part):
        return need
    result = graph.output_node().args[0]
    alike = isinstance(result, fx.Node) and list(map(written, shape_of(result))) == list(map(written, shape_of(input)))
    return results[0] if alike and need.isdisjoint(axis for axis, _ in results[0]) else WHOLE


def _called(node: fx.Node, needs: list[Part]) -> Moved:
    """The call on what is needed of each operand."""
    needed = iter(needs)

    def change(leaf: Any) -> Any:
        return Want(leaf, next(needed)) if is_tensor(leaf) else leaf

    return Moved(node.target, walk(node.args, change), walk(node.kwargs, change))


def _code(graph: fx.Graph) -> str:
    return str(graph.python_code("self").src)


def _written_anywhere(graph: fx.Graph) -> bool:
    """Whether a graph may stand in another one."""
    returns_one = isinstance(graph.output_node().args[0], fx.Node)
    return returns_one and all(op_of(node) in UNFOLDED for node in graph.nodes if node.op == "call_function")


def _hooked(module: nn.Module) -> bool:
    return any(
        hooks
        for name, hooks in vars(module).items()
        if (name.endswith("_hooks") and "forward" in name) or "backward" in name
    )
