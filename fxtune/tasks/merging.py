"""One trunk for several tasks: two trunks of the same network as one graph that gives what either gives."""

from __future__ import annotations

import hashlib
from collections import Counter

import torch
from torch import fx

from fxtune.errors import PlanError
from fxtune.splitting import only_rearranges, operation, takes_part
from fxtune.tracing import ENTER, LEAVE, Region, new_graph


def merge(one: Region, other: Region) -> tuple[fx.Graph, list[int]]:
    """A graph that computes what two trunks of one network do, what they have in common once.

    Args:
        one: the first; its results come first.
        other: the second.

    Returns:
        The graph, and the positions of the other's results among its results.

    Raises:
        PlanError: they are trunks of different networks.
    """
    ours, theirs = _keys(one), _keys(other)
    _check_same_network(one, ours, other, theirs)
    graph = new_graph()
    made = {ours[node]: copied for node, copied in _copy(one.graph, graph).items()}
    at: fx.Node | None = None
    for node in other.graph.nodes:
        if node.op == "output":
            break
        if theirs[node] not in made:
            with graph.inserting_after(at):
                made[theirs[node]] = graph.node_copy(node, lambda read: made[theirs[read]])
        at = made[theirs[node]]
    results = [made[ours[node]] for node in _results(one.graph)]
    wanted = [made[theirs[node]] for node in _results(other.graph)]
    results += [node for node in dict.fromkeys(wanted) if node not in results]
    graph.output(tuple(results))
    graph.lint()
    return graph, [results.index(node) for node in wanted]


def without(trunk: Region, results: list[int]) -> fx.Graph:
    """A trunk that gives these of its results only, and computes nothing else."""
    graph = new_graph()
    made = _copy(trunk.graph, graph)
    kept = _results(trunk.graph)
    graph.output(tuple(made[kept[i]] for i in results))
    graph.eliminate_dead_code(is_impure_node=_acts)
    return graph


def _acts(node: fx.Node) -> bool:
    """Whether a node does something even if nobody reads it."""
    inside = node.meta["body"].nodes if "body" in node.meta else [node]
    writes = any(getattr(getattr(n.target, "_schema", None), "is_mutable", False) for n in inside)
    return writes or node.op == "placeholder" or node.op == "output" or node.target in (*ENTER.values(), LEAVE)


def _copy(graph: fx.Graph, to: fx.Graph) -> dict[fx.Node, fx.Node]:
    made: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node.op != "output":
            made[node] = to.node_copy(node, made.__getitem__)
    return made


def _results(graph: fx.Graph) -> list[fx.Node]:
    results = graph.output_node().args[0]
    assert isinstance(results, tuple)
    return [node for node in results if isinstance(node, fx.Node)]


def _keys(trunk: Region) -> dict[fx.Node, str]:
    """A key for each node, the same in all graphs for what is computed in one way of the same.

    Of equal nodes in one graph the first has the key of the first in another: between them memory may be written to.
    """
    keys: dict[fx.Node, str] = {}
    seen: Counter[str] = Counter()
    for node in trunk.graph.nodes:
        told = f"{node.name if node.op == 'placeholder' else ''}{operation(node, trunk, keys)}"
        seen[told] += 1
        keys[node] = hashlib.blake2b(f"{told} {seen[told]}".encode(), digest_size=16).hexdigest()
    return keys


def _check_same_network(one: Region, ours: dict[fx.Node, str], other: Region, theirs: dict[fx.Node, str]) -> None:
    """A trunk may end before another, or give more values of what both compute."""
    a, b = ({keys[node]: node for node in keys if _computes(node)} for keys in (ours, theirs))
    contexts = [[keys[n] for n in keys if n.target in (*ENTER.values(), LEAVE)] for keys in (ours, theirs)]
    if (a.keys() <= b.keys() or b.keys() <= a.keys()) and contexts[0] == contexts[1]:
        return
    node = next((b[key] for key in b if key not in a), None)
    what = f"`{node.target}` is computed in another way" if node is not None else "its precision contexts differ"
    raise PlanError(
        "tasks can share one backbone pass only if they were tuned on the same network",
        found=what,
        fix="apply their rules to the same model, with the same example_inputs, form and optimize",
    )


def _computes(node: fx.Node) -> bool:
    """Whether a node is the network's own: more than taking and arranging values for a bypass."""
    if node.op == "call_module":
        return True
    own = isinstance(node.target, torch._ops.OpOverload) and node.target is not torch.ops.aten.clone.default
    return own and not only_rearranges(node) and not takes_part(node)
