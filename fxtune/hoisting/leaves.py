"""Modules that stay as they are, and functions: called on parts of their operands where they compute the same."""

from __future__ import annotations

import copy
from typing import Any

from torch import fx, nn

from fxtune.hoisting.aliases import overwritten, writes
from fxtune.hoisting.call import Moved, Touch, Want, is_tensor, op_of, walk
from fxtune.hoisting.narrowing import narrow
from fxtune.hoisting.needs import Flow, Scope
from fxtune.hoisting.part import Part
from fxtune.hoisting.tracing import Traces, operands
from fxtune.hoisting.values import fill

UNFOLDED = frozenset({"linear", "addmm", "mm", "matmul", "t", "transpose", "mT"})
"""Operators that don't depend on the mode: a leaf of these may be written as what it runs."""


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
            found = self._narrowed(body, module, results)
            if found is None or _code(found[0].graph) != _code(body):
                return None
            return _called(node, found[1], found[0].graph)
        return None if op_of(node) == "" and node.op != "call_module" else self._traced(node, owner, results)

    def unfolds(self, node: fx.Node, owner: nn.Module, part: Part) -> bool:
        """Whether a folded module's operators compute a part of its result from parts of its weights.

        A module with hooks is called as it is, for them to run.
        """
        body = node.meta.get("body")
        if node.op != "call_module" or body is None or _hooked(owner.get_submodule(str(node.target))):
            return False
        if {op_of(inner) for inner in body.nodes if inner.op == "call_function"} - UNFOLDED:
            return False
        found = self._narrowed(body, owner.get_submodule(str(node.target)), [part])
        return found is not None

    def _traced(self, node: fx.Node, owner: nn.Module, results: list[Part]) -> Moved | None:
        vals = [operand.meta["val"] for operand in operands(node)]
        needs: list[list[Part]] = []
        for number, graph in enumerate(graphs := self._traces.of(node, owner, vals)):
            found = self._narrowed(graph, owner, results)
            if found is None or any(isinstance(need, frozenset) for need in found[1]):
                return None
            flow, parts = found
            if _code(flow.graph) != _code(graph):
                # Sizes that the code reads from its operands are literals in the trace.
                again = self._traces.of(node, owner, [input.meta["val"] for input in flow.inputs()])
                if len(again) != len(graphs) or _code(again[number]) != _code(flow.graph):
                    return None
            needs.append([need for need in parts if isinstance(need, Part)])
        return _called(node, needs[0]) if needs and all(theirs == needs[0] for theirs in needs) else None

    def _narrowed(
        self, graph: fx.Graph, owner: nn.Module, results: list[Part]
    ) -> tuple[Flow, list[Part | frozenset[int]]] | None:
        """A copy of a graph that computes parts of its results, and what it needs; None if that is no less."""
        graph = copy.deepcopy(graph)
        fill(graph, owner)
        returned = graph.output_node().args[0]
        if writes(graph) and overwritten(graph, owner) & {*graph.find_nodes(op="placeholder")}:
            return None
        if len(returned if isinstance(returned, tuple | list) else [returned]) != len(results):  # type: ignore[arg-type]
            return None
        scope = Scope(self.through_detach, overwritten(graph, owner))
        flow = Flow(graph, owner, scope, results)
        needs = [flow.need(input) for input in flow.inputs()]
        if flow.stops:
            return None
        narrow(flow, [need if isinstance(need, Part) else Part() for need in needs])
        return flow, needs


def _called(node: fx.Node, needs: list[Any], body: fx.Graph | None = None) -> Moved:
    """The call on what is needed of each operand."""
    needed = iter(needs)

    def change(leaf: Any) -> Any:
        if not is_tensor(leaf):
            return leaf
        need = next(needed)
        return Want(leaf, need) if isinstance(need, Part) else Touch(leaf, need)

    return Moved(node.target, walk(node.args, change), walk(node.kwargs, change), body)


def _code(graph: fx.Graph) -> str:
    return str(graph.python_code("self").src)


def _hooked(module: nn.Module) -> bool:
    return any(
        hooks
        for name, hooks in vars(module).items()
        if (name.endswith("_hooks") and "forward" in name) or "backward" in name
    )
