"""Where a value's numbers come from: layout and parts, carried out on the places of the numbers."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxtune.structure.constants import _size
from fxtune.view import Value, View, example_size
from fxtune.vocabulary import PART


@dataclass(frozen=True)
class Way:
    """The way back from a value to the operation, weight or input whose numbers it holds.

    Attributes:
        source: value id of that.
        item: which of its results, of an operation that has several.
        steps: the layout operators and parts between, in order.
    """

    source: int
    item: int
    steps: tuple[Value, ...]


def way_to(view: View, id: int) -> Way:
    """The way back from a value; noise is a source of its own."""
    steps: list[Value] = []
    item = 0
    while True:
        value = view.values[id]
        tensors = [read for read in value.inputs() if isinstance(read.val, Tensor | tuple | list)]
        quiet = view.quiet.get(id)
        if value.target is operator.getitem and tensors and tensors[0].op not in PART:
            item = int(value.args[1])
        elif quiet == "layout" or value.op in PART or value.target is operator.getitem:
            steps.append(value)
        elif quiet is None:
            return Way(id, item, tuple(steps[::-1]))
        id = tensors[0].id


def written(way: Way) -> str:
    """The steps of a way as text, their tensors left out."""
    return "; ".join(_told(step) for step in way.steps)


def shape_of(view: View, way: Way) -> tuple[int, ...]:
    """Sizes of what a way leads back to, in the example."""
    return tuple(map(example_size, _result(view.values[way.source], way.item).shape))


def places_along(shape: tuple[int, ...], channels: int | None, way: Way) -> Tensor | None:
    """The places among the source's numbers, in the shape of the value that the way is of; None where a step cannot be
    carried out on places.

    Args:
        shape: of the source.
        channels: the source's axis whose places count fastest, where that is not its last.
        way: the way.
    """
    return _walked(_base(shape, channels), way.steps)


def _result(value: Value, item: int) -> Tensor:
    found: Tensor = value.val if isinstance(value.val, Tensor) else value.val[item]
    return found


def _base(shape: tuple[int, ...], channels: int | None) -> Tensor:
    if channels is None or not shape:
        return torch.arange(torch.Size(shape).numel()).view(shape)
    moved = [size for axis, size in enumerate(shape) if axis != channels] + [shape[channels]]
    return torch.arange(torch.Size(moved).numel()).view(moved).movedim(-1, channels)


def _walked(places: Tensor, steps: tuple[Value, ...]) -> Tensor | None:
    current: Any = places
    for step in steps:
        if step.target is operator.getitem:
            current = current[step.args[1]]
            continue
        read = next(read for read in step.inputs() if isinstance(read.val, Tensor | tuple | list))

        def put(argument: Any, read: Value = read, current: Any = current) -> Any:
            if argument is read:
                return current.contiguous()
            return _size(argument.val) if isinstance(argument, Value) else _size(argument)

        try:
            current = step.target(
                *fx.node.map_aggregate(step.args, put),
                **fx.node.map_aggregate(step.kwargs, put),
            )
        except (RuntimeError, TypeError, NotImplementedError, ValueError, IndexError):
            return None
    whole = isinstance(current, Tensor) and current.dtype == torch.int64
    return current if whole else None


def _told(step: Value) -> str:
    """A step as text, its tensors left out."""

    def put(argument: Any) -> Any:
        if isinstance(argument, Value):
            return "_" if isinstance(argument.val, Tensor | tuple | list) else _size(argument.val)
        return _size(argument)

    return f"{step.target} {fx.node.map_aggregate((step.args, step.kwargs), put)}"
