"""The facts of one operation: which tensors of the model's own it computes with, and how they are stored."""

from __future__ import annotations

from typing import Any

from fxtune.matching.edges import port
from fxtune.matching.matcher import Solution
from fxtune.matching.site import Convolution, Operation, WeightLayout, Weights
from fxtune.view import Value, View
from fxtune.vocabulary import CAST, RENAMED

_STATE = frozenset({"param", "buffer"})
_NOT_COMPUTED = _STATE | {"input", "opaque"}

_IN_X_OUT = {"addmm": ("mat2", "self"), "mm": ("mat2", ""), "matmul": ("other", "")}
"""Operators whose weight stands on the right of the product, and what their schemas call weight and bias."""

_TRANSPOSED = frozenset({"t", "mT", "mH", "adjoint", "numpy_T", "transpose", "swapaxes", "swapdims"})
"""What turns a matrix; a `permute` of a matrix is written so rarely that it is not told apart."""


def only_operation(view: View, solution: Solution) -> int | None:
    """The one operation of a match; None where it has several, or none."""
    nodes = [node for node in solution.nodes if is_operation(view, node)]
    return nodes[0] if len(nodes) == 1 else None


def is_operation(view: View, node: int) -> bool:
    """Whether something is computed at a node: a weight or an input is no operation."""
    return view.op(node) not in _NOT_COMPUTED and bool(view.uses(node))


def read_operation(view: View, node: int) -> Operation:
    """The operation at a node of the view."""
    convolution = _convolution(view, node)
    maps = None if convolution is None else (port(view, view.uses(node)[0].value, 1), port(view, node, 1))
    return Operation(node, view.op(node), _weights(view, node), convolution, maps)


def _convolution(view: View, node: int) -> Convolution | None:
    """How a convolution goes over its map; None of what is none, or is transposed."""
    value = view.values[node]
    if RENAMED.get(value.op) != "conv" or view.attrs(node)["transposed"]:
        return None
    given = _arguments(value)
    kernel = tuple(int(side) for side in given["weight"].shape[2:])

    def each(name: str, default: int) -> tuple[int, ...]:
        sizes = given.get(name, default)
        listed = [int(size) for size in sizes] if isinstance(sizes, list | tuple) else [int(sizes)]
        return tuple(listed * len(kernel) if len(listed) == 1 else listed)

    padding = given.get("padding", 0)
    return Convolution(
        kernel=kernel,
        stride=each("stride", 1),
        padding=padding if isinstance(padding, str) else each("padding", 0),
        dilation=each("dilation", 1),
        groups=int(given.get("groups", 1)),
    )


def _weights(view: View, node: int) -> Weights | None:
    """The operation's weights; None where it has none, or its weight is no tensor of the model's state."""
    value = view.values[node]
    given = _arguments(value)
    named = _IN_X_OUT.get(value.op, ("weight", "bias"))
    weight, bias = (_tensor(given.get(name)) for name in named)
    scaled = any(given.get(factor, 1) != 1 for factor in ("alpha", "beta"))  # an addmm may scale its two terms
    if (weight is None and bias is None) or scaled:
        return None
    weight_name, bias_name = _own(view, node, weight, turned=True), _own(view, node, bias, turned=False)
    computed = bias if bias_name is None else None
    if (weight is not None and weight_name is None) or (computed is not None and len(computed.shape) != 1):
        return None
    return Weights(weight_name, bias_name, _layout(view, node, weight), None if computed is None else named[1])


def _arguments(value: Value) -> dict[str, Any]:
    """The operator's arguments by the names in its schema."""
    schema = getattr(value.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema else []
    return dict(zip(names, value.args, strict=False)) | value.kwargs


def _tensor(argument: object) -> Value | None:
    return argument if isinstance(argument, Value) else None


def _own(view: View, node: int, tensor: Value | None, *, turned: bool) -> str | None:
    """State_dict name of an operand that is read as it is stored, cast or, where it may be, `turned`."""
    if tensor is None:
        return None
    use = next(use for use in view.uses(node) if use.value == tensor.id)
    source = view.values[use.source]
    run = [view.values[value].op for value in use.run]
    known = all(op in CAST or (turned and op in _TRANSPOSED and len(tensor.shape) == 2) for op in run)
    return str(source.target) if source.op in _STATE and known else None


def _layout(view: View, node: int, weight: Value | None) -> WeightLayout:
    """How the model stores the weight."""
    value = view.values[node]
    if value.op.startswith("conv"):
        return "transposed" if "transpose" in value.op or _arguments(value).get("transposed") else "convolution"
    if view.op(node) != "linear" or weight is None:
        return "other"
    run = next(use.run for use in view.uses(node) if use.value == weight.id)
    turns = sum(view.values[value].op in _TRANSPOSED for value in run)
    return "in x out" if (value.op in _IN_X_OUT) != (turns % 2 == 1) else "out x in"
