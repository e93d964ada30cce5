"""The canonical view: a graph of what a model computes, in which spelling makes no difference."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import networkx as nx
import torch
from torch import fx

from fxtune import vocabulary as ops
from fxtune.collecting import collector_aside
from fxtune.view.axes import channel_axes
from fxtune.view.values import Tap, Value, example_size, read_values, written


@dataclass(frozen=True, slots=True)
class Use:
    """One operand of an operation: an edge of the view.

    Attributes:
        source: id of the operation (or input, parameter) that computed the number.
        value: id of the value that is really read: after the run of quiet operators.
        run: ids of the quiet values between the two, in order.
    """

    source: int
    value: int
    run: tuple[int, ...] = ()


@dataclass
class View:
    """What a captured model computes.

    Attributes:
        graph: a node an operation, with ``op``, ``shape``, ``attrs`` and ``uses``; an edge an operand, keyed by its
            position.
        values: every value of the model; node ids index this list.
        axes: the channel axis of each value that has one.
        returned: ids of the values that the model returns.
    """

    graph: nx.MultiDiGraph[int]
    values: list[Value]
    axes: dict[int, int]
    returned: list[int]
    quiet: dict[int, str] = field(default_factory=dict)

    def op(self, node: int) -> str:
        """Canonical name of an operation."""
        name: str = self.graph.nodes[node]["op"]
        return name

    def uses(self, node: int) -> tuple[Use, ...]:
        """The operands of an operation, in order."""
        found: tuple[Use, ...] = self.graph.nodes[node]["uses"]
        return found

    def attrs(self, node: int) -> dict[str, Any]:
        """Literal arguments of an operation."""
        found: dict[str, Any] = self.graph.nodes[node]["attrs"]
        return found

    def consumers(self, node: int) -> list[int]:
        """The operations that read an operation's result, in order of computation, each once."""
        return sorted(set(self.graph.successors(node)))

    def width(self, value: int) -> Any:
        """Size of the channel axis of a value, or None."""
        axis = self.axes.get(value)
        return self.values[value].shape[axis] if axis is not None else None

    def tokens(self, value: int) -> int:
        """Product of all sizes but the channels' in the example: the number of tokens, or of positions in all maps."""
        axis = self.axes.get(value)
        return math.prod(example_size(size) for i, size in enumerate(self.values[value].shape) if i != axis)

    @cached_property
    def by_op(self) -> dict[str, list[int]]:
        """Operations by canonical name, in order of computation."""
        found: dict[str, list[int]] = {}
        for node, data in self.graph.nodes(data=True):
            found.setdefault(data["op"], []).append(node)
        return found

    @cached_property
    def tapped(self) -> dict[Tap, list[int]]:
        """For every place, the values that can be read there: several where a layer is called several times."""
        found: dict[Tap, list[int]] = {}
        for value in self.values:
            for tap in value.taps:
                found.setdefault(tap, []).append(value.id)
        return found

    @cached_property
    def readers(self) -> dict[int, list[int]]:
        """For every value, the values computed from it, quiet ones included."""
        found: dict[int, list[int]] = {}
        for value in self.values:
            for source in value.inputs():
                found.setdefault(source.id, []).append(value.id)
        return found


def view(module: fx.GraphModule) -> View:
    """The canonical view of a captured model.

    Layout, casts and random operators are edges instead of nodes, in-place and functional operators bear one name, a
    1x1 convolution is ``linear``, multiplication by a number is ``scale``, every way to take a part is ``part``. Every
    node keeps the values it stands for, so that what is found in the view can be changed in the graph.

    Args:
        module: what `fxtune.capture` returned.
    """
    with collector_aside():
        values, returned = read_values(module)
        return _Builder(values).build([v.id for v in returned])


class _Builder:
    def __init__(self, values: list[Value]) -> None:
        self.values = values
        self.quiet: dict[int, str] = {}
        self.source: dict[int, tuple[int, tuple[int, ...]]] = {}
        self.noise: set[int] = set()
        self.graph: nx.MultiDiGraph[int] = nx.MultiDiGraph()

    def build(self, returned: list[int]) -> View:
        for value in self.values:
            if self._is_size(value):
                continue
            if self._is_noise(value):
                self.noise.add(value.id)
            elif (kind := self._quiet(value)) is not None:
                self._pass_through(value, kind)
            else:
                self._operation(value)
        return View(self.graph, self.values, channel_axes(self.values), returned, self.quiet)

    @staticmethod
    def _is_size(value: Value) -> bool:
        return not _tensors(value.val) and value.op not in ("param", "buffer", "input", "opaque")

    def _is_noise(self, value: Value) -> bool:
        inputs = value.inputs()
        if value.op in ops.RANDOM:
            return True
        tensors = [v for v in inputs if _tensors(v.val)]
        return bool(tensors) and all(v.id in self.noise for v in tensors)

    def _quiet(self, value: Value) -> str | None:
        """The kind of quiet operator that a value is, or None."""
        tensors = [v for v in value.inputs() if _tensors(v.val)]
        if not tensors:
            return None
        if value.op in ops.LAYOUT:
            return "layout"
        if value.op in ops.CAST:
            return "cast"
        if value.op in ops.DROPOUT:
            return "dropout"
        if value.target is operator.getitem and value.args[1] == 0 and tensors[0].op not in ops.PART:
            return "layout"  # the main result of an operator that returns its statistics too
        if value.op in ops.RESIZING and _same_shape(value, tensors[0]):
            return "layout"
        if value.op == "mul" and len(tensors) == 2 and tensors[1].id in self.noise and tensors[0].id not in self.noise:
            sizes = tensors[1].shape[1:]
            return "drop_path" if all(written(size) == "1" for size in sizes) else "dropout"
        return None

    def _pass_through(self, value: Value, kind: str) -> None:
        self.quiet[value.id] = kind
        use = self._use(next(v for v in value.inputs() if _tensors(v.val)))
        self.source[value.id] = (use.source, (*use.run, value.id))

    def _use(self, value: Value) -> Use:
        source, run = self.source.get(value.id, (value.id, ()))
        return Use(source, value.id, run)

    def _operation(self, value: Value) -> None:
        operands = [v for v in value.inputs() if _tensors(v.val) and v.id not in self.noise]
        op, attrs = self._named(value, operands)
        if op == "part" and isinstance(value.val, tuple | list):
            return  # each of its items is a part of its operand
        if value.target is operator.getitem and operands[0].op in ops.PART:
            operands = [*operands[0].inputs()[:1]]
        uses = tuple(self._use(v) for v in operands)
        self.graph.add_node(value.id, op=op, shape=value.shape, attrs=attrs, uses=uses)
        for position, use in enumerate(uses):
            self.graph.add_edge(use.source, value.id, key=position, value=use.value, run=use.run)

    def _named(self, value: Value, operands: list[Value]) -> tuple[str, dict[str, Any]]:
        name = ops.RENAMED.get(value.op, value.op)
        attrs = _literals(value)
        if value.target is operator.getitem:
            return "part", {"index": value.args[1]}
        if name in ops.PART:
            return "part", attrs
        if name in ("mul", "div") and len(operands) == 1:
            return "scale", {"factor": _factor(name, value)}
        if name in ("add", "sub") and len(operands) == 1:
            return "shift", attrs
        if value.op == "addmm" and len(operands) == 3:
            # addmm(bias, x, weight): a pattern names x first.
            operands[:] = [operands[1], operands[2], operands[0]]
        elif value.op == "baddbmm":
            operands[:] = operands[1:]
        elif name == "matmul" and len(operands) == 2 and self._is_weight(operands[1]):
            return "linear", attrs
        elif name == "conv":
            attrs |= _convolution(value)
            if _is_linear(attrs):
                return "linear", attrs
        return name, attrs

    def _is_weight(self, value: Value) -> bool:
        return self.values[self._use(value).source].op == "param"


def _tensors(val: Any) -> bool:
    if isinstance(val, tuple | list):
        return any(_tensors(v) for v in val)
    return isinstance(val, torch.Tensor)


def _same_shape(a: Value, b: Value) -> bool:
    return [written(s) for s in a.shape] == [written(s) for s in b.shape]


def _factor(name: str, value: Value) -> float | None:
    """The number that a ``scale`` multiplies by; None where it is symbolic."""
    number = next((a for a in value.args if isinstance(a, int | float)), None)
    if number is None:
        return None
    return 1.0 / number if name == "div" else float(number)


def _literals(value: Value) -> dict[str, Any]:
    """Arguments that are no values, by the names that the operator's schema gives them."""
    schema = getattr(value.target, "_schema", None)
    names = [a.name for a in schema.arguments] if schema else []
    plain = dict(zip(names, value.args, strict=False)) | value.kwargs
    return {k: v for k, v in plain.items() if isinstance(v, bool | int | float | str) or v is None}


def _convolution(value: Value) -> dict[str, Any]:
    """Largest kernel side, stride, padding and groups of a convolution; depth-wise when every channel is a group."""
    weight = next(v for v in value.inputs()[1:])
    schema = value.target._schema
    given = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    given |= dict(zip([a.name for a in schema.arguments], value.args, strict=False)) | value.kwargs
    groups = int(given.get("groups", 1))
    return {
        "kernel": max((int(s) for s in weight.shape[2:]), default=1),
        "stride": max(_sizes(given.get("stride", 1))),
        "padding": max(_sizes(given.get("padding", 0))),
        "groups": groups,
        "depthwise": groups > 1 and math.prod(int(s) for s in weight.shape[:2]) == groups,
        "transposed": bool(given.get("transposed", False)),
    }


def _sizes(sizes: Any) -> list[int]:
    """Sizes a side, or one for all; padding by name (`same`, `valid`) adds nothing where the kernel is 1."""
    if isinstance(sizes, str):
        return [0]
    return [int(size) for size in sizes] if isinstance(sizes, list | tuple) else [int(sizes)]


def _is_linear(attrs: dict[str, Any]) -> bool:
    """Whether a convolution is a linear map of the channels at every position."""
    return (attrs["kernel"], attrs["stride"], attrs["groups"]) == (1, 1, 1) and not (
        attrs["padding"] or attrs["transposed"]
    )
