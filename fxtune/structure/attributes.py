"""The arguments of an operation that are no tensors, written alike whoever wrote them."""

from __future__ import annotations

import math
from typing import Any

import torch

from fxtune.view import Value, example_size

_HOW = frozenset(
    [
        "copy",
        "cudnn_enable",
        "cudnn_enabled",
        "device",
        "dropout_p",
        "implicit",
        "layout",
        "memory_format",
        "non_blocking",
        "pin_memory",
    ]
)
"""Arguments that say how something is computed, not what; dropout is off in evaluation."""

_AXES = frozenset({"dim", "dims", "axis", "start_dim", "end_dim"})

_ABSENT: dict[str, tuple[str, ...]] = {"transposed": ("False",), "output_padding": ("0",)}
"""Values that say nothing where another operator lacks the argument."""

EPS = "eps"


def given(value: Value) -> dict[str, Any]:
    """All arguments of an operation by name, those that were left out as the operator has them."""
    schema = getattr(value.target, "_schema", None)
    arguments = list(schema.arguments) if schema else []
    defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
    names = [a.name for a in arguments] or [str(i) for i in range(len(value.args))]
    return {**defaults, **dict(zip(names, value.args, strict=False)), **value.kwargs}


def attributes_of(value: Value, op: str, view_attributes: dict[str, Any]) -> tuple[str, float | None]:
    """The arguments as text, and epsilon by itself.

    Args:
        value: the operation.
        op: its canonical name.
        view_attributes: what the canonical view says of it.
    """
    arguments = given(value)
    eps = arguments.pop(EPS, None)
    if op == "scale" and (factor := view_attributes.get("factor")) is not None:
        arguments = {"factor": factor, "rounding_mode": arguments.get("rounding_mode")}
    elif op == "shift":
        arguments["by"] = value.op
    elif op == "sdpa":
        return _of_attention(arguments), None
    rank = _rank(value)
    written = {
        name: text
        for name, argument in arguments.items()
        if name not in _HOW and (text := _text(argument, rank if name in _AXES else None)) not in _default(value, name)
    }
    text = ", ".join(f"{name}={written[name]}" for name in sorted(written))
    return text, float(eps) if isinstance(eps, int | float) else None


def _default(value: Value, name: str) -> tuple[str | None, ...]:
    schema = getattr(value.target, "_schema", None)
    for argument in schema.arguments if schema else ():
        if argument.name == name and argument.has_default_value():
            return None, _text(argument.default_value, None), *_ABSENT.get(name, ())
    return None, "", *_ABSENT.get(name, ())


def _text(argument: Any, rank: int | None) -> str | None:
    """None for tensors."""
    if isinstance(argument, Value):
        return None if _has_tensor(argument.val) else _text(argument.val, rank)
    if isinstance(argument, list | tuple):
        items = [_text(item, rank) for item in argument]
        if any(item is None for item in items):
            return None
        same = items[0] if items and len(set(items)) == 1 and rank is None else None
        return same if same is not None else f"[{', '.join(map(str, items))}]"
    if isinstance(argument, bool):
        return str(argument)
    if isinstance(argument, int | torch.SymInt):
        size = example_size(argument)
        return str(size % rank if rank and size < 0 else size)
    if isinstance(argument, float):
        return f"{argument:.12g}"
    if isinstance(argument, torch.Tensor):
        return None
    return "" if argument is None else str(argument)


def _has_tensor(val: Any) -> bool:
    if isinstance(val, tuple | list):
        return any(_has_tensor(item) for item in val)
    return isinstance(val, torch.Tensor)


def _rank(value: Value) -> int | None:
    return next((len(read.shape) for read in value.inputs() if isinstance(read.val, torch.Tensor)), None)


def scale_told(scale: float, head_dim: int) -> str:
    """The factor on the logits, where it is not the one that is taken when none is given."""
    return "" if math.isclose(scale, head_dim**-0.5, rel_tol=1e-6) else f"scale={scale:.6g}"


def _of_attention(arguments: dict[str, Any]) -> str:
    """Grouped heads are told by the sizes of the operands."""
    scale, query = arguments.get("scale"), arguments["query"]
    told = [scale_told(scale, example_size(query.shape[-1]))] if isinstance(scale, float) else []
    return ", ".join(filter(None, [*told, "causal" * bool(arguments.get("is_causal"))]))
