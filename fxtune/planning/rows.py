"""Where prompt rows travel: from where they join a sequence to where they leave it.

The captured graph was made for N tokens and may hold N as a literal. What must change for N + P is found by following
the tokens themselves: every value on the way is given a tensor of token numbers, moved as the model moves it, so the
axis (or part of an axis) along which the numbers differ is where the tokens are, whatever other size equals N.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx

from fxtune.errors import PlanError
from fxtune.planning.edits import Bypass, Resize
from fxtune.view import Value, View, example_size
from fxtune.vocabulary import CAST, DROPOUT, LAYOUT, PART

SIZED = {"view": 1, "reshape": 1, "_unsafe_view": 1, "expand": 1, "view_copy": 1}
"""Operators that are given sizes, and the position of the sizes among their arguments."""


class Lost(Exception):
    """The operation treats tokens by their position, so that further rows have no place in it."""


@dataclass
class Way:
    """The values between where rows join and where they leave, and what must change for them.

    Attributes:
        values: ids, in the order of computation; the first is the one that the rows join.
        axes: the token axis of each value that has the tokens on one axis of their own.
        resized: reshapes and the like.
        bypasses: runs of operations that treat tokens by position, which the rows go around.
    """

    values: list[int]
    axes: dict[int, int] = field(default_factory=dict)
    resized: list[Resize] = field(default_factory=list)
    bypasses: list[Bypass] = field(default_factory=list)


def way(view: View, start: int, ends: Iterable[int], cores: dict[int, int], site: str) -> Way:
    """The way of rows from the value `start` (B x N x D) to the values `ends`.

    Args:
        view: the view.
        start: id of the value that the rows join.
        ends: ids of the values behind which they leave.
        cores: attention cores on the way: the core's value id -> that of its queries.
        site: for errors.

    Raises:
        PlanError: an operation on the way has no place for further rows; which.
    """
    return _Walk(view, start, tuple(ends), cores, site).walk()


class _Walk:
    def __init__(self, view: View, start: int, ends: tuple[int, ...], cores: dict[int, int], site: str) -> None:
        self.view, self.start, self.ends, self.cores, self.site = view, start, ends, cores, site
        self.tokens = example_size(view.values[start].shape[1])
        self.labels: dict[int, Any] = {}
        self.graph = self._between()

    def walk(self) -> Way:
        if self.tokens < 2:
            raise self._refused("has one token in the example, which can't be told from the other sizes", self.start)
        found = Way(sorted(self.graph))
        while by_position := self._follow(found):
            found.bypasses.append(self._around(by_position))
        found.axes = {id: axis for id in found.values if (axis := self._axis(self.labels.get(id))) is not None}
        return found

    def _follow(self, found: Way) -> set[int]:
        """Numbers the tokens of every value; gives the operations that treat them by position.

        What is computed from those has no numbers, except behind a bypass.
        """
        found.resized = []
        self.labels = {self.start: self._first()}
        inside = {id for bypass in found.bypasses for id in bypass.inside}
        behind = {bypass.last: bypass.first for bypass in found.bypasses}
        by_position: set[int] = set()
        for id in found.values[1:]:
            if id in behind:
                self.labels[id] = self.labels[behind[id]]
            elif id not in inside and all(other in self.labels for other in self.graph.predecessors(id)):
                try:
                    self.labels[id] = self._label(id, found)
                except Lost:
                    by_position.add(id)
        return by_position

    # ---- the values on the way ---------------------------------------------------------------------------------------

    def _between(self) -> nx.DiGraph[int]:
        """What is computed from `start` and leads to one of the ends. Through a core only its queries lead."""
        graph: nx.DiGraph[int] = nx.DiGraph()
        graph.add_node(self.start)
        last = max(self.ends)
        for value in self.view.values[self.start + 1 : last + 1]:
            operands = [self.cores[value.id]] if value.id in self.cores else [v.id for v in value.inputs()]
            if not _tensors(value.val) or value.op in FRESH:
                continue
            for operand in operands:
                if operand in graph:
                    graph.add_edge(operand, value.id)
        wanted = set(self.ends) & set(graph)
        for end in list(wanted):
            wanted |= nx.ancestors(graph, end)
        return nx.DiGraph(graph.subgraph(wanted | {self.start}))

    def _around(self, by_position: set[int]) -> Bypass:
        """The way around all operations that treat tokens by position before the first attention, or end, behind them.

        A rotary embedding is several such operations, whose results meet: rows that went around each of them alone
        would be summed with themselves.
        """
        for target in sorted({*self.ends, *self.cores.values()} & set(self.graph)):
            leading: Any = self.graph.subgraph({target, *nx.ancestors(self.graph, target)})
            ops = by_position & set(leading)
            if not ops:
                continue
            entry = _meeting(_dominators(leading, self.start), ops)
            exit = _meeting(_dominators(leading.reverse(), target), ops, itself=True)
            inside = (set(nx.descendants(leading, entry)) & set(nx.ancestors(leading, exit))) | {exit}
            axis = self._axis(self.labels.get(entry))
            same = _sizes(self.view.values[entry]) == _sizes(self.view.values[exit])
            if axis is None or not same or inside & set(self.cores):
                break
            return self._bypass(entry, exit, axis, inside)
        raise self._refused("treats tokens by their position", min(by_position))

    def _bypass(self, entry: int, exit: int, axis: int, inside: set[int]) -> Bypass:
        for value in (self.view.values[id] for id in inside):
            if value.op in MAPS:
                raise self._refused("treats tokens by their position, with weights", value.id)
        first, last = self._tap(entry), self._tap(exit)
        if first.region != last.region:
            raise self._refused("treats tokens by their position in more than one module", exit)
        readers = {self._tap(reader).node for reader in self.graph.successors(entry) if reader in inside}
        return Bypass(
            region=first.region,
            entry=first.node,
            exit=last.node,
            axis=axis,
            readers=tuple(sorted(readers)),
            inside=frozenset(inside),
            first=entry,
            last=exit,
        )

    # ---- token numbers -----------------------------------------------------------------------------------------------

    def _first(self) -> Tensor:
        sizes = [example_size(size) for size in self.view.values[self.start].shape]
        return torch.arange(self.tokens, dtype=torch.int32).view(1, -1, 1).expand(sizes)

    def _label(self, id: int, found: Way) -> Any:
        value = self.view.values[id]
        if id in self.cores:
            return _channels(self.labels[self.cores[id]], value)
        if value.op in CAST or value.op in DROPOUT or value.op == "contiguous":
            return self._only(value)
        if value.op == "index":
            return self._indexed(value)
        if value.op in LAYOUT or value.op in PART or value.op in ("getitem", "cat", "stack"):
            return self._moved(value, found)
        if value.op in MAPS and len([v for v in value.inputs() if v.id in self.labels]) == 1:
            return _channels(self._only(value), value)
        if value.op in REDUCES:
            return self._reduced(value)
        if value.op in ALONE:
            return self._alone(value)
        raise self._refused(f"is `{value.op}`, which is not known to act on each token alone", id)

    def _moved(self, value: Value, found: Way) -> Any:
        if any(_tensors(v.val) and v.id not in self.labels for v in value.inputs()):
            raise Lost  # something that has its own tokens is put beside them
        args, kwargs = fx.node.map_aggregate((value.args, value.kwargs), self._plain)
        # Token numbers need not lie in memory as the values do.
        moved = args[0].reshape(args[1]) if value.op in ("view", "_unsafe_view") else value.target(*args, **kwargs)
        self._check_order(moved)
        if value.op in SIZED:
            self._resize(value, moved, found)
        return moved

    def _indexed(self, value: Value) -> Tensor:
        """Parts taken by numbers, along other axes than that of the tokens: which ones is all the same to them."""
        source, indices = value.args
        if any(v.id in self.labels or v.val.dtype is torch.bool for v in value.inputs()[1:]):
            raise self._refused("takes parts by numbers that it computes", value.id)
        labels: Tensor = self.labels[source.id]
        if any(indices[axis] is not None for axis in _varying(labels) if axis < len(indices)):
            raise Lost
        return labels[tuple(slice(None) if i is None else torch.zeros(_sizes(i), dtype=torch.long) for i in indices)]

    def _plain(self, argument: Any) -> Any:
        """An argument as the token numbers' own run needs it."""
        if isinstance(argument, Value):
            return self.labels[argument.id] if argument.id in self.labels else _number(argument.val)
        return _number(argument)

    def _check_order(self, moved: Any) -> None:
        """All tokens must be there, in their order: further rows come behind the last."""
        if isinstance(moved, tuple | list):
            for item in moved:
                self._check_order(item)
            return
        if len(places := _varying(moved)) == 1:
            numbers = _compact(moved).movedim(places[0], 0).flatten(1)[:, 0].tolist()
            if list(dict.fromkeys(numbers)) == list(range(self.tokens)):
                return
        raise Lost

    def _resize(self, value: Value, moved: Tensor, found: Way) -> None:
        if not value.taps:
            return  # inside a module that is kept whole: it reads its sizes from what it is given
        position = SIZED[value.op]
        changed = _resized(list(value.args[position]), _varying(moved)[0], value)
        if changed is None:
            raise self._refused("leaves two of its sizes open", value.id)
        if changed:
            found.resized.append(Resize(value.taps[0].region, value.taps[0].node, position, changed, value.id))

    def _reduced(self, value: Value) -> Tensor:
        """A mean or a norm over channels."""
        schema = value.target._schema
        given = dict(zip([a.name for a in schema.arguments], value.args, strict=False)) | value.kwargs
        labels: Tensor = self._only(value)
        dims = given.get("dim")
        dims = [dims] if isinstance(dims, int) else list(dims or range(labels.dim()))
        if {dim % labels.dim() for dim in dims} & set(_varying(labels)):
            raise self._refused(f"mixes tokens by `{value.op}`", value.id)
        for dim in sorted((dim % labels.dim() for dim in dims), reverse=True):
            labels = labels.narrow(dim, 0, 1) if given.get("keepdim", False) else labels.select(dim, 0)
        return labels

    def _alone(self, value: Value) -> Tensor:
        """Operations on each number alone, or over channels; what they read beside the tokens has no tokens itself."""
        shape = [example_size(size) for size in value.shape]
        parts: list[Tensor] = [self.labels[v.id].expand(shape) for v in value.inputs() if v.id in self.labels]
        for other in value.inputs():
            if isinstance(other.val, Tensor) and other.id not in self.labels and self._by_position(other, parts[0]):
                raise Lost
        if any(_varying(part) != _varying(parts[0]) for part in parts[1:]):
            raise Lost
        if value.op in OVER_CHANNELS and parts[0].dim() - 1 in _varying(parts[0]):
            raise self._refused(f"mixes tokens by `{value.op}`", value.id)
        return parts[0]

    def _by_position(self, other: Value, labels: Tensor) -> bool:
        from_behind = _varying(labels)[0] - labels.dim()
        return len(other.shape) >= -from_behind and example_size(other.shape[from_behind]) != 1

    def _only(self, value: Value) -> Any:
        return next(self.labels[v.id] for v in value.inputs() if v.id in self.labels)

    def _axis(self, labels: Any) -> int | None:
        if not isinstance(labels, Tensor):
            return None
        places = _varying(labels)
        return places[0] if len(places) == 1 and labels.shape[places[0]] == self.tokens else None

    def _tap(self, id: int) -> Any:
        taps = self.view.values[id].taps
        if not taps:
            raise self._refused("is computed inside a module that is kept whole", id)
        return taps[0]

    def _refused(self, what: str, id: int) -> PlanError:
        return PlanError(
            f"prompt rows cannot go through {self.site}",
            found=f"an operation {what}: {self.view.values[id].place()}",
            fix="choose other sites (`where:`), or a prefix, which brings keys and values of its own",
        )


def _dominators(graph: Any, start: int) -> dict[int, int]:
    found: dict[int, int] = nx.immediate_dominators(graph, start)
    return found


def _meeting(dominators: Mapping[int, int], ops: set[int], *, itself: bool = False) -> int:
    """The nearest value through which every way to all of `ops` runs; with `itself` it may be one of them."""
    chains = []
    for op in ops:
        chain = [op]
        while dominators.get(chain[-1], chain[-1]) not in (chain[-1], None):
            chain.append(dominators[chain[-1]])
        chains.append(chain)
    first, *others = chains
    return next(value for value in first if all(value in chain for chain in others) and (itself or value not in ops))


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


MAPS = _names("linear addmm mm matmul")
"""Maps of the channels, by a weight."""

REDUCES = _names("mean sum linalg_vector_norm")
"""What makes one number of several."""

FRESH = _names("new_empty new_zeros new_ones new_full")
"""What makes a tensor of its own sizes, and takes no more than the dtype of what it reads."""

OVER_CHANNELS = _names("layer_norm native_layer_norm rms_norm _fused_rms_norm")
"""What computes a token's channels from one another."""

ALONE = OVER_CHANNELS | _names(
    """
    add sub mul div neg relu gelu silu sigmoid tanh hardswish hardtanh elu leaky_relu mish softplus pow rsqrt sqrt exp
    square reciprocal clamp clamp_min rsub abs erf
    """
)
"""What computes each number, or each token, alone."""


def _channels(labels: Tensor, value: Value) -> Tensor:
    """Token numbers after a map of the last axis."""
    shape = [example_size(size) for size in value.shape]
    if labels.dim() - 1 in _varying(labels):
        raise Lost
    return labels[..., :1].expand(shape)


def _varying(labels: Tensor) -> list[int]:
    """The axes along which the numbers differ."""
    labels = _compact(labels)
    several = (axis for axis in range(labels.dim()) if labels.shape[axis] > 1)
    return [axis for axis in several if bool((labels.amax(axis) != labels.amin(axis)).any())]


def _compact(labels: Tensor) -> Tensor:
    """The numbers once, where they are written once for a whole axis: most of them are, and sizes are a model's own."""
    for axis in range(labels.dim()):
        if labels.stride(axis) == 0:
            labels = labels.narrow(axis, 0, 1)
    return labels


def _resized(sizes: list[Any], axis: int, value: Value) -> dict[int, int] | None:
    """Position -> new size; -1 where the rows are. None where another open size is not known."""
    if isinstance(sizes[axis], int) and sizes[axis] == -1:
        return {}
    changed = {axis: -1}
    for place, size in enumerate(sizes):
        if place != axis and isinstance(size, int) and size == -1 and value.op != "expand":
            known = value.shape[place]
            if not isinstance(known, int):
                return None
            changed[place] = known
    return changed


def _number(argument: Any) -> Any:
    if isinstance(argument, torch.SymInt):
        return example_size(argument)
    return argument


def _tensors(val: Any) -> bool:
    if isinstance(val, tuple | list):
        return any(_tensors(v) for v in val)
    return isinstance(val, Tensor)


def _sizes(value: Value) -> list[int]:
    return [example_size(size) for size in value.shape]
