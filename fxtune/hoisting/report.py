"""What the pass did, or why there was nothing to do."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import fx, nn

from fxtune.hoisting.call import op_of, shape_of
from fxtune.hoisting.needs import Flow
from fxtune.hoisting.part import Part
from fxtune.hoisting.regions import called_regions, runs
from fxtune.view import example_size, join
from fxtune.vocabulary import LAYOUT, PART, base_name

_MIXING = frozenset({"mean", "sum", "amax", "amin", "max", "min", "index", "gather", "einsum"}) | {
    *("avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "max_pool2d", "adaptive_max_pool2d"),
    *("softmax", "scaled_dot_product_attention"),
}
"""Operators with which a model reads all of its tokens, or such as it finds while it runs."""


@dataclass(frozen=True)
class Hoisted:
    """What moved.

    Attributes:
        operations: how many operations compute a part of what they computed.
        places: the modules in which they are.
        parts: how much they compute, ``1 of 197``, the most frequent first.
        reason: why nothing moved, if nothing did.
    """

    operations: int = 0
    places: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        if not self.operations:
            return f"optimize: nothing can be left out: {self.reason}"
        many = "1 operation" if self.operations == 1 else f"{self.operations} operations"
        return f"optimize: {many} in {', '.join(self.places)} computed for {self.parts[0]} places"


def told(root: fx.GraphModule, flows: Iterable[Flow]) -> Hoisted:
    """The report of a pass, from what it found to be needed; the graphs must be as they were."""
    paths = {id(module): path for path, module in root.named_modules(remove_duplicate=False)}
    places: list[str] = []
    parts: Counter[str] = Counter()
    stops: list[str] = []
    for flow in flows:
        path = paths[id(flow.owner)]
        stops += [f"`{_name(node)}` at {path or '<root>'}:{node.name} reads all of its input" for node in flow.stops]
        for node, needed in flow.parts.items():
            if any(needed) and _computes(node, flow.owner):
                places.append(join(path, str(node.target)) if "body" in node.meta else path)
                parts.update(text for part in needed for text in _texts(node, part))
    if not places:
        return Hoisted(reason=next(iter(stops), "") or _reader(root))
    return Hoisted(len(places), tuple(_outermost(places)), tuple(text for text, _ in parts.most_common()))


def _computes(node: fx.Node, owner: nn.Module) -> bool:
    """Whether a node stands for an operation, and not for a region or the layout of a value."""
    if node.op == "call_module":
        return not called_regions(node, owner) or not hasattr(owner.get_submodule(str(node.target)), "graph")
    return node.op == "call_function" and op_of(node) not in LAYOUT | PART | {"getitem", "detach"}


def _texts(node: fx.Node, part: Part) -> Iterator[str]:
    for axis, range in part:
        yield f"{range.length} of {example_size(shape_of(node)[axis])}"


def _outermost(places: Iterable[str], most: int = 3) -> list[str]:
    """Paths that lie in no other of them; if they are many, what they all lie in. The model itself does not count."""
    found = [place for place in dict.fromkeys(places) if place]
    outer = [place for place in found if not any(place.startswith(f"{other}.") for other in found)]
    if len(outer) > most:
        steps = zip(*(place.split(".") for place in outer), strict=False)
        outer = [".".join(step[0] for step in itertools.takewhile(lambda step: len(set(step)) == 1, steps))]
    return [place or "<root>" for place in outer or [""]]


def _reader(root: fx.GraphModule) -> str:
    """The operation, nearest to the result, that reads all tokens."""
    for node, path in _backwards(root.graph, root, ""):
        if _name(node) in _MIXING:
            return f"`{_name(node)}` at {path or '<root>'}:{node.name} reads all of its input"
    return "no operation reads a few places alone"


def _backwards(graph: fx.Graph, owner: nn.Module, path: str) -> Iterator[tuple[fx.Node, str]]:
    """The operations of a model, the last one first."""
    for node in reversed(graph.nodes):
        if node.op == "call_module":
            target = join(path, str(node.target))
            for inner, module in list(runs(node, owner))[:1]:
                yield from _backwards(inner, module, target)
        elif node.op == "call_function":
            yield node, path


def _name(node: fx.Node) -> str:
    return base_name(node.target) if node.op == "call_function" else str(node.target)
