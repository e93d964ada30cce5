"""Lines two exports of one model up, region by region: training mode against evaluation mode and another dtype.

Pairs say which node is which. What has no partner, or differs in more than what follows the model's dtype, is kept as
a segment: the steps of a region that stand for each other in the two modes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

from fxtune.tracing.calls import Call, Tree
from fxtune.tracing.flat import is_size

EXTREMES = ("min", "max", "eps", "tiny", "smallest_normal", "resolution")


@dataclass(eq=False)
class Block:
    """A run of a region's items in both exports: one pair, or a segment of what differs.

    Args:
        a, b: its items in the first and in the second export.
        results: values of the segment that are read later, (in the first export, in the second) -> who reads them.
    """

    call: Call
    a: list[Node | Call]
    b: list[Node | Call]
    paired: bool
    results: dict[tuple[Node, Node], list[Node]] = field(default_factory=dict)

    def nodes(self) -> tuple[list[Node], list[Node]]:
        return list(_flat(self.a)), list(_flat(self.b))


class Alignment:
    """Two exports lined up.

    Args:
        first: the tree that the captured graph is made from.
        second: the tree of the other export.

    Attributes:
        follows: (node of the first, argument's place) -> None for a dtype, else which extreme of the dtype it is.
        typed: nodes of the first whose dtype is the model's.
    """

    def __init__(self, first: Tree, second: Tree) -> None:
        self.first, self.second = first, second
        self.follows: dict[Node, dict[tuple[Any, ...], str]] = {}
        self.typed: set[Node] = set()
        self._calls = {call.key for call in second.root.walk()}
        self._through: dict[Node, Node] = {}
        self.blocks: dict[Call, list[Block]] = {}
        self._pair(first.root, second.root)
        self._note_dtypes()
        self._settle()

    @property
    def segments(self) -> list[Block]:
        return [block for blocks in self.blocks.values() for block in blocks if not block.paired]

    def partner(self, value: Node) -> Node | None:
        """The second export's value for one of the first's."""
        return self._image.get(self.source(value))

    def origin(self, value: Node) -> Node | None:
        """The first export's value for one of the second's."""
        return self._origin.get(value)

    def source(self, value: Node) -> Node:
        """A value of the first export, before any live leaves that do nothing in the second."""
        while value in self._through:
            value = self._through[value]
        return value

    def _pair(self, a: Call, b: Call) -> None:
        blocks = self.blocks[a] = []
        ours = [(at, item) for at, item in enumerate(a.items) if not self._transparent(item)]
        done = 0

        def pass_through(stop: int) -> None:
            for leaf in a.items[done:stop]:
                assert isinstance(leaf, Call)
                blocks.append(Block(a, [leaf], [], True))
                self._through.update((out, leaf.inputs[0]) for out in leaf.outputs)

        for tag, a0, a1, b0, b1 in _opcodes([_token(item) for _, item in ours], [_token(item) for item in b.items]):
            if tag != "equal":
                if a0 < a1:
                    pass_through(ours[a0][0])
                    done = ours[a1 - 1][0] + 1
                    blocks.append(Block(a, a.items[ours[a0][0] : done], b.items[b0:b1], False))
                else:
                    blocks.append(Block(a, [], b.items[b0:b1], False))
                continue
            for (at, x), y in zip(ours[a0:a1], b.items[b0:b1], strict=True):
                pass_through(at)
                done = at + 1
                blocks.append(Block(a, [x], [y], True))
                if isinstance(x, Call) and isinstance(y, Call) and not x.folded:
                    self._pair(x, y)
        pass_through(len(a.items))

    def _transparent(self, item: Node | Call) -> bool:
        """A live leaf that is called in both exports but does nothing in the second: there, its result is its input."""
        if not isinstance(item, Call) or not item.folded or item.key in self._calls:
            return False
        times = self.first.exported.observed.times(item.module)
        return times == self.second.exported.observed.times(self.second.modules[item.path])

    def _index(self) -> None:
        """What stands for what, by the pairs as they are now."""
        self._image: dict[Node, Node] = dict(_lifted(self.first, self.second))
        self._origin = {b: a for a, b in self._image.items()}
        self._segment_a: dict[Node, Block] = {}
        self._segment_b: dict[Node, Block] = {}
        self._pairs: list[tuple[Block, Node, Node]] = []
        for blocks in self.blocks.values():
            for block in blocks:
                if block.paired:
                    for x, y in zip(block.a, block.b, strict=False):  # a leaf that is passed through has no partner
                        self._pair_values(block, x, y)
                else:
                    ours, theirs = block.nodes()
                    self._segment_a.update((node, block) for node in ours)
                    self._segment_b.update((node, block) for node in theirs)
        self._origin.update((b, a) for a, b in self._image.items())

    def _pair_values(self, block: Block, x: Node | Call, y: Node | Call) -> None:
        if isinstance(x, Node) and isinstance(y, Node):
            self._image[x] = y
            self._pairs.append((block, x, y))
        elif isinstance(x, Call) and isinstance(y, Call) and x.folded:
            self._image.update(zip(x.outputs, y.outputs, strict=False))
            for a, b in zip(x.inputs, y.inputs, strict=False):
                self._leaf_inputs.append((block, a, b))

    def _note_dtypes(self) -> None:
        """Marks literals that follow the model's dtype, and values that have it."""
        self._leaf_inputs: list[tuple[Block, Node, Node]] = []
        self._index()
        for _, a, b in self._pairs:
            for place, x, y in differences(a, b):
                kind = _follows(x, y)
                if kind is not None:
                    self.follows.setdefault(a, {})[place] = kind
        for a in self.first.exported.graph.nodes:
            source = self.partner(a)
            if source is None:
                continue
            x, y = a.meta.get("val"), source.meta.get("val")
            if isinstance(x, Tensor) and isinstance(y, Tensor) and x.dtype != y.dtype and not self._promoted(a):
                self.typed.add(a)

    def _promoted(self, node: Node) -> bool:
        """Whether an operand's fixed dtype may decide the result's: float32 with bfloat16 gives float32, though
        float32 with float64 gives float64."""
        if node.op == "placeholder" or node in self.follows:
            return False
        values = [(other, other.meta.get("val")) for other in node.all_input_nodes]
        floating = [
            other for other, value in values if isinstance(value, Tensor) and value.is_floating_point() and value.dim()
        ]
        return not all(other in self.typed for other in floating)

    def _settle(self) -> None:
        """Turns pairs that differ by mode into segments, joins segments that need each other, notes their results."""
        while True:
            self._leaf_inputs = []
            self._join_neighbours()
            self._index()
            for block in self.segments:
                block.results.clear()
            if not (self._split_pairs() or self._join_dependent()):
                return

    def _join_neighbours(self) -> None:
        for call, blocks in self.blocks.items():
            joined: list[Block] = []
            for block in blocks:
                if joined and not block.paired and not joined[-1].paired:
                    joined[-1] = Block(call, joined[-1].a + block.a, joined[-1].b + block.b, False)
                else:
                    joined.append(block)
            self.blocks[call] = joined

    def _split_pairs(self) -> bool:
        """Pairs whose literals or operands differ by mode become segments of their own."""
        changed = False
        for block, a, b in self._pairs:
            for place, x, y in differences(a, b):
                if isinstance(x, Node) and isinstance(y, Node):
                    if self._joined(a, x, y) or self._read_uncast(a, place, x, y):
                        continue
                elif place in self.follows.get(a, {}) or _same_size(x, y):
                    continue
                block.paired = False
                changed = True
                break
        for block, x, y in self._leaf_inputs:
            if not self._joined(next(iter(block.nodes()[0])), x, y):
                block.paired = False
                changed = True
        result_a, result_b = self.first.result, self.second.result
        for _, x, y in differences(result_a, result_b):
            if not (isinstance(x, Node) and isinstance(y, Node) and self._joined(result_a, x, y)) and not _same_size(
                x, y
            ):
                raise DifferentResults
        return changed

    def _read_uncast(self, user: Node, place: tuple[Any, ...], a: Node, b: Node) -> bool:
        """Lets a step read the value before a cast, where the other export shows that the model's code does.

        A cast to the dtype that a value has gives that very tensor, and the exporter then takes every later use of the
        value for a use of the cast.
        """
        while _casts_nothing(a):
            a = a.all_input_nodes[0]
            if self._joined(user, a, b):
                _replace_at(user, place, a)
                return True
        return False

    def _joined(self, user: Node, a: Node, b: Node) -> bool:
        """Whether ``b`` is what ``a`` is in the other export; notes a segment's result on the way."""
        inner = self.source(a)
        if is_size(a) or is_size(b) or self._image.get(inner) is b:
            return True
        block = self._segment_a.get(inner) or self._segment_b.get(b)
        if block is None:
            return False
        block.results.setdefault((inner, b), []).append(user)
        return True

    def _join_dependent(self) -> bool:
        """A segment that reads what only exists in one mode must contain it."""
        for block in self.segments:
            ours, theirs = block.nodes()
            for nodes, segment_of in ((ours, self._segment_a), (theirs, self._segment_b)):
                inside = set(nodes)
                for node in nodes:
                    for value in node.all_input_nodes:
                        value = self.source(value)
                        other = segment_of.get(value)
                        if value in inside or other is None or other is block or is_size(value):
                            continue
                        results = {x if segment_of is self._segment_a else y for x, y in other.results}
                        if value not in results:
                            self._merge(other, block)
                            return True
        return False

    def _merge(self, early: Block, late: Block) -> None:
        """Joins two segments and all between them, in the innermost call that contains both."""
        chain = list(_ancestors(early.call))
        call = next(c for c in _ancestors(late.call) if c in chain)
        blocks = self.blocks[call]
        places = sorted(self._place(block, call) for block in (early, late))
        run = blocks[places[0] : places[1] + 1]
        merged = Block(call, [i for block in run for i in block.a], [i for block in run for i in block.b], False)
        blocks[places[0] : places[1] + 1] = [merged]
        for inner in [i for i in merged.a if isinstance(i, Call)]:
            for gone in inner.walk():
                self.blocks.pop(gone, None)

    def _place(self, block: Block, call: Call) -> int:
        blocks = self.blocks[call]
        if block.call is call:
            return blocks.index(block)
        child = next(c for c in _ancestors(block.call) if c.parent is call)
        return next(i for i, candidate in enumerate(blocks) if child in candidate.a)


class DifferentResults(Exception):
    """The two exports return different things."""


def _casts_nothing(node: Node) -> bool:
    if node.op != "call_function" or getattr(node.target, "_opname", None) != "to":
        return False
    before, after = node.all_input_nodes[0].meta.get("val"), node.meta.get("val")
    return isinstance(before, Tensor) and isinstance(after, Tensor) and before.dtype == after.dtype


def _replace_at(node: Node, place: tuple[Any, ...], value: Node) -> None:
    """Puts `value` at one place of a node's arguments, as `differences` names it."""
    first, *rest = place
    if isinstance(first, int):
        node.args = tuple(_put(arg, rest, value) if i == first else arg for i, arg in enumerate(node.args))
    elif first in node.kwargs:
        node.kwargs = {name: _put(arg, rest, value) if name == first else arg for name, arg in node.kwargs.items()}
    else:
        names = list(arguments(node))
        at = names.index(first)
        node.args = tuple(_put(arg, rest, value) if i == at else arg for i, arg in enumerate(node.args))


def _put(arg: Any, place: list[Any], value: Node) -> Any:
    if not place:
        return value
    return type(arg)(_put(item, place[1:], value) if i == place[0] else item for i, item in enumerate(arg))


def arguments(node: Node) -> dict[str, Any]:
    """A node's arguments by name, defaults included."""
    if not isinstance(node.target, OpOverload):
        return {**{str(i): arg for i, arg in enumerate(node.args)}, **node.kwargs}
    schema = node.target._schema.arguments
    named = {spec.name: spec.default_value for spec in schema if spec.has_default_value()}
    named.update(zip((spec.name for spec in schema), node.args, strict=False))
    named.update(node.kwargs)
    return named


def differences(a: Node, b: Node) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """(place, ours, theirs) wherever arguments are not literally the same; nodes always count as different."""
    if len(a.args) == len(b.args) and a.kwargs.keys() == b.kwargs.keys():
        for i, (x, y) in enumerate(zip(a.args, b.args, strict=True)):
            yield from _unequal(x, y, (i,))
        for name, x in a.kwargs.items():
            yield from _unequal(x, b.kwargs[name], (name,))
        return
    ours, theirs = arguments(a), arguments(b)
    for name in {**ours, **theirs}:
        yield from _unequal(ours.get(name), theirs.get(name), (name,))


def _unequal(a: Any, b: Any, place: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    if isinstance(a, Node) or isinstance(b, Node):
        yield place, a, b
    elif isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _unequal(x, y, (*place, i))
    elif not isinstance(a, torch.device) and (type(a) is not type(b) or (a != b and not (a != a and b != b))):
        yield place, a, b


def _same_size(a: Any, b: Any) -> bool:
    """A symbolic size in the one, and its value in the other, which was exported with fixed sizes."""
    return isinstance(a, Node) and is_size(a) and isinstance(b, int)


def _follows(a: Any, b: Any) -> str | None:
    """ "dtype" for two floating dtypes, the name of the extreme for the same extreme of two dtypes."""
    if isinstance(a, torch.dtype) and isinstance(b, torch.dtype):
        return "dtype" if a.is_floating_point and b.is_floating_point else None
    if isinstance(a, float) and isinstance(b, float):
        return next((name for x, y, name in _extremes() if (x, y) == (a, b)), None)
    return None


def _extremes() -> list[tuple[float, float, str]]:
    found = []
    for ours in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        for theirs in (torch.float64, torch.float32):
            if ours is not theirs:
                for name in EXTREMES:
                    found.append((getattr(torch.finfo(ours), name), getattr(torch.finfo(theirs), name), name))
    return found


def _opcodes(ours: list[Any], theirs: list[Any]) -> Sequence[tuple[str, int, int, int, int]]:
    if ours == theirs:
        return [("equal", 0, len(ours), 0, len(theirs))]
    return SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes()


def _token(item: Node | Call) -> Any:
    return item.key if isinstance(item, Call) else item.target


def _flat(items: list[Node | Call]) -> Iterator[Node]:
    for item in items:
        if isinstance(item, Call):
            yield from item.nodes()
        else:
            yield item


def _lifted(first: Tree, second: Tree) -> Iterator[tuple[Node, Node]]:
    """Inputs and weights of the two exports, matched by name."""
    theirs = {node.name: node for node in second.exported.graph.nodes if node.op == "placeholder"}
    for node in first.exported.graph.nodes:
        if node.op == "placeholder" and node.name in theirs:
            yield node, theirs[node.name]


def _ancestors(call: Call | None) -> Iterator[Call]:
    while call is not None:
        yield call
        call = call.parent
