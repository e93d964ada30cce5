"""What is needed of every value: found from the readers back to what they read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import fx, nn

from fxtune.hoisting.aliases import overwritten, writes
from fxtune.hoisting.call import (
    Call,
    Item,
    Moved,
    Read,
    Touch,
    Want,
    is_tensor,
    item_of,
    op_of,
    overwrites,
    shape_of,
    walk,
    whole,
)
from fxtune.hoisting.laws import law_of
from fxtune.hoisting.part import WHOLE, Part, hull, merged
from fxtune.hoisting.regions import called_regions, count_calls
from fxtune.hoisting.values import known

WORTH = 0.75
"""Parts that come to more than this of a value are not worth taking: it is computed whole."""


TAKING = frozenset({"select", "slice", "narrow", "getitem"})
"""Operators that need a part of what they read, whatever is needed of their result."""


class Leaves(Protocol):
    """Knows what the calls of modules that are no regions, and of functions of Python's, need for a part."""

    def call(self, node: fx.Node, owner: nn.Module, results: list[Part]) -> Moved | None:
        """The same call on parts of its operands, from which it computes these parts of its results."""

    def unfolded(self, node: fx.Node, owner: nn.Module, results: list[Part]) -> fx.Graph | None:
        """The graph to write in the place of the call, if parts are then moved further."""


@dataclass
class Scope:
    """What holds for all the graphs of a captured model.

    Attributes:
        through_detach: whether parts move through a detach.
        kept: nodes whose values stay as they are.
        calls: how often each region is called, by id.
        leaves: what is known of calls that run no region.
        shared: the flows of regions that are called more than once, by id.
    """

    through_detach: bool
    kept: frozenset[fx.Node]
    calls: dict[int, int] = field(default_factory=dict)
    leaves: Leaves | None = None
    shared: dict[int, Flow] = field(default_factory=dict)

    @classmethod
    def of(cls, root: fx.GraphModule, leaves: Leaves, *, through_detach: bool) -> Scope:
        return cls(through_detach, overwritten(root.graph, root), count_calls(root), leaves)


@dataclass
class Asked:
    """What the readers of a value have asked for: parts of it or of its items, or the sizes of some axes."""

    parts: list[Part] = field(default_factory=list)
    items: dict[int, list[Part]] = field(default_factory=dict)
    sizes: set[int] | None = None

    @property
    def for_part(self) -> bool:
        """Whether they need less than all of it."""
        return self.sizes is not None or any(map(any, (self.parts, *self.items.values())))


class Flow:
    """The parts that are needed of each value of one graph, and the calls that compute them.

    Attributes:
        parts: for each node that is needed at all, the parts of its value.
        items: for each node that returns several tensors, the part of each.
        moved: for a node and a part of it, the call that computes it.
        inner: the flows of the regions that a node calls.
        unfolded: calls that have to be written as the graphs that they run.
        stops: nodes of whose results a part is needed, but which need all of their operands.
    """

    def __init__(
        self, graph: fx.Graph, owner: nn.Module, scope: Scope, results: list[Part] | None = None, *, open: bool = True
    ) -> None:
        """`results`: the parts needed of what the graph returns; all of it by default. A graph that is not `open` is
        given its inputs whole."""
        self.graph, self.owner, self.results, self.open = graph, owner, results, open
        self.parts: dict[fx.Node, list[Part]] = {}
        self.items: dict[fx.Node, list[Part]] = {}
        self.moved: dict[tuple[fx.Node, Part], Moved] = {}
        self.inner: dict[fx.Node, list[Flow]] = {}
        self.unfolded: dict[fx.Node, fx.Graph] = {}
        self.stops: list[fx.Node] = []
        self._scope = scope
        self._asked: dict[fx.Node, Asked] = {}
        for node in reversed(graph.nodes):
            if node.op == "output":
                self._return(node, results)
            elif (asked := self._asked.get(node)) or _acts(node):
                self._settle(node, asked or Asked([WHOLE]))

    def inputs(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    def keeps(self, node: fx.Node) -> bool:
        """Whether a value is overwritten, or shares memory with one that is: it stays whole."""
        return node in self._scope.kept

    def need(self, input: fx.Node) -> Part | frozenset[int]:
        """The part that is needed of an input, or the axes whose sizes are."""
        parts, asked = self.parts.get(input), self._asked.get(input)
        return hull(parts, shape_of(input)) if parts else frozenset((asked and asked.sizes) or ())

    # ---- one node ----------------------------------------------------------------------------------------------------

    def _return(self, node: fx.Node, results: list[Part] | None) -> None:
        returned = node.args[0]
        items = list(returned) if isinstance(returned, tuple | list) else [returned]
        if results is None:
            results = [WHOLE] * len(items)
        for item, part in zip(items, results, strict=True):
            for leaf in _nodes(item):
                self._ask(Want(leaf, part))

    def _ask(self, read: Read) -> None:
        asked = self._asked.setdefault(read if isinstance(read, fx.Node) else read.node, Asked())
        if isinstance(read, Touch):
            asked.sizes = (asked.sizes or set()) | read.axes
        elif isinstance(read, Item):
            asked.items.setdefault(read.index, []).append(read.part)
        else:
            asked.parts.append(read.part if isinstance(read, Want) else WHOLE)

    def _settle(self, node: fx.Node, asked: Asked) -> None:
        if asked.for_part:
            known(node, self.owner)
        parts = self._decided(node, asked)
        if node.op not in ("placeholder", "get_attr"):
            moved = [self._call(node, part, asked) for part in parts]
            if None in moved:
                self._stop(node, asked)
                parts, moved = [WHOLE], [whole(node)]
            for part, call in zip(parts, moved, strict=True):
                assert call is not None
                self.moved[node, part] = call
                for read in call.reads():
                    self._ask(read)
        if parts:
            self.parts[node] = parts

    def _decided(self, node: fx.Node, asked: Asked) -> list[Part]:
        """The parts to compute of a value."""
        if node.op == "get_attr" or not is_tensor(node) or node in self._scope.kept:
            return [WHOLE]
        if node.op == "placeholder" and not self.open:
            return [WHOLE]
        shape, sizes = shape_of(node), asked.sizes or set()
        parts = merged(asked.parts, shape)
        if asked.sizes is not None and not any(sizes.isdisjoint(axis for axis, _ in part) for part in parts):
            # An input of which only sizes are read is the caller's to choose.
            return [] if node.op == "placeholder" and not parts else [WHOLE]
        if sum(part.share(shape) for part in parts) > WORTH:
            return [WHOLE]
        return [hull(parts, shape)] if node.op == "placeholder" or called_regions(node, self.owner) else parts

    def _stop(self, node: fx.Node, asked: Asked) -> None:
        self.items.pop(node, None)
        self.inner.pop(node, None)
        if asked.for_part:
            self.stops.append(node)

    # ---- calls -------------------------------------------------------------------------------------------------------

    def _call(self, node: fx.Node, part: Part, asked: Asked) -> Moved | None:
        """The call that computes a part of a node's value; None where it needs all of its operands."""
        if node in self._scope.kept:
            return whole(node)
        if asked.for_part or op_of(node) in TAKING:
            for operand in node.all_input_nodes:
                known(operand, self.owner)
        if item := self._item(node):
            return Moved(node.target, (Item(item[0], item[1], part), item[1]), {})
        results = self._results(node, part, asked)
        if regions := called_regions(node, self.owner):
            return _fitted(self._enter(node, regions, results))
        if law := law_of(node, through_detach=self._scope.through_detach):
            return _fitted(law(Call(node), part))
        return _fitted(self._leaf(node, results))

    def _item(self, node: fx.Node) -> tuple[fx.Node, int] | None:
        """For an item of what a region or a leaf returns: the call, and which item."""
        item = item_of(node)
        if item is None or not is_tensor(node) or item[0] in self._scope.kept:
            return None
        return item if item[0].op == "call_module" or (self._scope.leaves and not op_of(item[0])) else None

    def _results(self, node: fx.Node, part: Part, asked: Asked) -> list[Part]:
        """The parts that are needed of each tensor that a call returns."""
        val = node.meta.get("val")
        if not isinstance(val, tuple | list):
            return [part]
        if asked.parts:  # somebody reads them all
            return [WHOLE] * len(val)
        shapes = [tuple(getattr(item, "shape", ())) for item in val]
        self.items[node] = [_one(asked.items.get(i, [WHOLE]), shape) for i, shape in enumerate(shapes)]
        return self.items[node]

    def _enter(self, node: fx.Node, regions: list[fx.GraphModule], results: list[Part]) -> Moved | None:
        """Goes on in the regions that a node calls, and out to its operands."""
        region, scope = regions[0], self._scope
        if scope.calls[id(region)] > 1:
            if id(region) not in scope.shared:
                scope.shared[id(region)] = Flow(region.graph, region, scope, open=False)
            return None if any(results) else whole(node)
        self.inner[node] = [Flow(region.graph, region, scope, results) for region in regions]
        needs = [[flow.need(input) for input in flow.inputs()] for flow in self.inner[node]]
        args = [_argument(node.args[i], [theirs[i] for theirs in needs]) for i in range(len(node.args))]
        return Moved(node.target, tuple(args), {})

    def _leaf(self, node: fx.Node, results: list[Part]) -> Moved | None:
        if not any(results):
            return whole(node)
        if (leaves := self._scope.leaves) is None:
            return None
        moved = leaves.call(node, self.owner, results)
        if moved is None and (graph := leaves.unfolded(node, self.owner, results)):
            self.unfolded[node] = graph
        return moved


def _nodes(argument: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    walk(argument, lambda leaf: found.append(leaf) if isinstance(leaf, fx.Node) else None)
    return found


def _argument(argument: Any, needs: list[Part | frozenset[int]]) -> Any:
    """What to give to regions that need this of an argument."""
    if not is_tensor(argument):
        return argument
    parts = [need for need in needs if isinstance(need, Part)]
    if parts:
        return Want(argument, hull(parts, shape_of(argument)))
    return Touch(argument, frozenset().union(*(need for need in needs if isinstance(need, frozenset))))


def _one(parts: list[Part], shape: tuple[Any, ...]) -> Part:
    one = hull(parts, shape)
    return one if one.share(shape) <= WORTH else WHOLE


def _acts(node: fx.Node) -> bool:
    """Whether a node does something beside giving a value that others read."""
    if node.op == "call_function":
        return overwrites(node) or not node.users
    body = node.meta.get("body")
    return node.op == "call_module" and (body is None or writes(body))


def _fitted(moved: Moved | None) -> Moved | None:
    """With parts as they are said of tensors of fixed sizes."""

    def fit(leaf: Any) -> Any:
        return Want(leaf.node, leaf.part.fitting(shape_of(leaf.node))) if isinstance(leaf, Want) else leaf

    return moved and Moved(moved.target, walk(moved.args, fit), walk(moved.kwargs, fit))
