"""Writing the calls that compute the parts: in the place of those that computed the whole, from the inputs on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from fxtune.hoisting.aliases import writes
from fxtune.hoisting.call import Item, Moved, Touch, Want, overwrites, shape_of, walk
from fxtune.hoisting.needs import Flow
from fxtune.hoisting.part import WHOLE, Part, Range
from fxtune.hoisting.values import part_of
from fxtune.tracing import Region

Piece = tuple[Part, fx.Node]
"""A part of a value, and the node that has it."""


def narrow(flow: Flow, given: Sequence[Part] | None = None) -> list[Flow]:
    """Changes a graph, and those that it calls, so that they compute the parts that are needed.

    Args:
        flow: what is needed.
        given: the part of each input that the graph is given from now on; all of each by default.

    Returns:
        The flows whose graphs changed.
    """
    changing = _Narrowing(flow)
    changing.run(given or [WHOLE] * len(flow.inputs()))
    return changing.changed


class _Narrowing:
    def __init__(self, flow: Flow) -> None:
        self.flow, self.graph = flow, flow.graph
        self.changed: list[Flow] = []
        self._pieces: dict[fx.Node, list[Piece]] = {}
        self._slices: dict[tuple[fx.Node, Part], fx.Node] = {}
        self._shapes = {node: shape_of(node) for node in flow.graph.nodes}
        self._read = [node for node in flow.graph.nodes if node.users]

    def run(self, given: Sequence[Part]) -> None:
        for input, part in zip(self.flow.inputs(), given, strict=True):
            input.meta["val"] = part_of(input.meta.get("val"), part)
            self._pieces[input] = [(part, input)]
        if any(given) and isinstance(self.flow.owner, Region):
            self.flow.owner.recomputed = False  # what it keeps for the backward pass is small now
        for node in list(self.graph.nodes):
            if node.op == "output":
                self._return(node)
            elif node.op != "placeholder":
                self._pieces[node] = self._computed(node)
        for node in reversed(self._read):
            if not node.users and _only_computes(node):
                self.graph.erase_node(node)

    # ---- nodes -------------------------------------------------------------------------------------------------------

    def _computed(self, node: fx.Node) -> list[Piece]:
        """Writes the calls that compute a value's parts."""
        parts = self.flow.parts.get(node)
        if parts is None or node.op == "get_attr":
            return [(WHOLE, node)]
        if node in self.flow.inner:
            return self._region(node, parts[0])
        if parts == [WHOLE] and all(map(self._is_as_before, self.flow.moved[node, WHOLE].reads())):
            return [(WHOLE, node)]
        nodes = [node] if len(parts) == 1 else [self._twin(node) for _ in parts]
        before = node.meta.get("val")
        return [self._write(node, made, part, before) for made, part in zip(nodes, parts, strict=True)]

    def _write(self, node: fx.Node, made: fx.Node, part: Part, before: Any) -> Piece:
        """Lets `made`, which is the node or stands in its place, compute a part of the node's value."""
        moved = self.flow.moved[node, part]
        args, kwargs = (
            walk(arguments, lambda leaf: self._resolved(leaf, made)) for arguments in (moved.args, moved.kwargs)
        )
        self._update(made, moved.target, args, kwargs)
        if node in self.flow.items:
            made.meta["val"] = tuple(map(part_of, before, self.flow.items[node]))
        else:
            part = self._actual(moved, part)
            made.meta["val"] = part_of(before, part)
        return part, made

    def _actual(self, moved: Moved, part: Part) -> Part:
        """The part that a call gives: of an item, what the source was made to return."""
        item = moved.args[0] if moved.args else None
        if not isinstance(item, Item):
            return part
        return self.flow.items[item.node][item.index] if item.node in self.flow.items else WHOLE

    def _region(self, node: fx.Node, part: Part) -> list[Piece]:
        """Goes on in the regions that a node calls, which are given what they need and no more."""
        pieces = [self._given(read, node) for read in self.flow.moved[node, part].args]
        for inner in self.flow.inner[node]:
            self.changed += narrow(inner, [given for given, _ in pieces])
        self._update(node, node.target, tuple(argument for _, argument in pieces), {})
        returned = self.flow.inner[node][0].graph.output_node().args[0]
        node.meta["val"] = walk(returned, lambda leaf: leaf.meta.get("val") if isinstance(leaf, fx.Node) else leaf)
        return [(part, node)]

    def _given(self, read: Any, at: fx.Node) -> tuple[Part, Any]:
        if isinstance(read, Want):
            return read.part, self._fetch(read, at)
        return self._piece(read) if isinstance(read, Touch) else (WHOLE, read)

    def _return(self, node: fx.Node) -> None:
        returned: Any = node.args[0]
        several = isinstance(returned, tuple | list)
        results = self.flow.results or [WHOLE] * (len(returned) if several else 1)
        items = returned if several else [returned]
        found = [self._parts_in(item, part, node) for item, part in zip(items, results, strict=True)]
        result = (tuple(found) if isinstance(returned, tuple) else found) if several else found[0]
        self._update(node, node.target, (result,), {})

    def _parts_in(self, returned: Any, part: Part, at: fx.Node) -> Any:
        return walk(returned, lambda leaf: self._fetch(Want(leaf, part), at) if isinstance(leaf, fx.Node) else leaf)

    # ---- what they read ----------------------------------------------------------------------------------------------

    def _resolved(self, leaf: Any, at: fx.Node) -> Any:
        if isinstance(leaf, Want):
            return self._fetch(leaf, at)
        if isinstance(leaf, Touch):
            return self._piece(leaf)[1]
        return leaf.node if isinstance(leaf, Item) else leaf

    def _fetch(self, want: Want, at: fx.Node) -> fx.Node:
        """The node that has exactly this part of a value, for the node `at` to read.

        The part is taken as soon as there is what it is a part of, and copied: so nothing keeps the whole alive, and
        modules whose code is not known get it laid out as usual. Of a value that is overwritten it is taken when it is
        read.
        """
        part, node = self._piece(want)
        kept = self.flow.keeps(node)
        for axis, range in want.part.within(part):
            key = (node, Part.of({axis: range}))
            made = None if kept else self._slices.get(key)
            if made is None:
                made = self._slices[key] = self._taken(node, axis, range, at if kept else None)
                self._change()
            node = made
        return node

    def _taken(self, node: fx.Node, axis: int, range: Range, before: fx.Node | None) -> fx.Node:
        """A copy of a part, taken right behind the value, or right before some node."""
        behind = self.flow.inputs()[-1] if node.op == "placeholder" else node
        with self.graph.inserting_before(before) if before else self.graph.inserting_after(behind):
            made = self.graph.call_function(torch.ops.aten.slice.Tensor, (node, axis, range.start, range.stop))
        with self.graph.inserting_after(made):
            copy = self.graph.call_function(
                torch.ops.aten.clone.default, (made,), {"memory_format": torch.contiguous_format}
            )
        val = part_of(node.meta.get("val"), Part.of({axis: range}))
        for new in (made, copy):
            new.meta = {**{name: value for name, value in node.meta.items() if name != "body"}, "val": val}
        return copy

    def _piece(self, read: Want | Touch) -> Piece:
        """The smallest piece that will do."""
        fit = [piece for piece in self._pieces[read.node] if _serves(piece[0], read)]
        return min(fit, key=lambda piece: piece[0].share(self._shapes[read.node]))

    def _is_as_before(self, read: Any) -> bool:
        if isinstance(read, Item):
            return not any(self.flow.items.get(read.node, []))
        return not isinstance(read, Want | Touch) or self._pieces[read.node] == [(WHOLE, read.node)]

    # ---- the graph ---------------------------------------------------------------------------------------------------

    def _twin(self, node: fx.Node) -> fx.Node:
        with self.graph.inserting_before(node):
            made = self.graph.create_node(node.op, node.target, node.args, dict(node.kwargs), name=node.name)
        made.meta = dict(node.meta)
        self._change()
        return made

    def _update(self, node: fx.Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (node.target, walk(node.args, _same), walk(node.kwargs, _same)) != (target, args, kwargs):
            node.target, node.args, node.kwargs = target, args, kwargs
            self._change()

    def _change(self) -> None:
        if self.flow not in self.changed:
            self.changed.append(self.flow)


def _same(leaf: Any) -> Any:
    return leaf


def _serves(part: Part, read: Want | Touch) -> bool:
    if isinstance(read, Want):
        return part.holds(read.part)
    return read.axes.isdisjoint(axis for axis, _ in part)


def _only_computes(node: fx.Node) -> bool:
    """Whether a node that nobody reads may go."""
    body = node.meta.get("body")
    folded = node.op == "call_module" and body is not None and not writes(body)
    return folded or node.op == "get_attr" or (node.op == "call_function" and not overwrites(node))
