"""Where a value's numbers come from: through layout and parts, back to what computed them."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxtune.structure.constants import size_of
from fxtune.structure.places import Places, lying
from fxtune.view import Value, View, example_size
from fxtune.vocabulary import PART, RESHAPING, RESIZING

_KEEPING_ORDER = RESHAPING | {"contiguous", "alias", "view_as", "reshape_as", "view_copy", "ravel"}
"""Layout operators that give the numbers, in their order, the sizes that they have afterwards."""


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
        tensors = tensors_of(value)
        quiet = view.quiet.get(id)
        if value.target is operator.getitem and tensors and tensors[0].op not in PART:
            item = int(value.args[1])
        elif quiet == "layout" and value.op in RESIZING:
            pass  # to the size that it had
        elif quiet == "layout" or value.op in PART or value.target is operator.getitem:
            steps.append(value)
        elif quiet is None:
            return Way(id, item, tuple(steps[::-1]))
        id = tensors[0].id


def tensors_of(value: Value) -> list[Value]:
    """The tensors that a value is computed from."""
    return [read for read in value.inputs() if isinstance(read.val, Tensor | tuple | list)]


def shape_of(view: View, way: Way) -> tuple[int, ...]:
    """Sizes of what a way leads back to, in the example."""
    val = view.values[way.source].val
    found: Tensor = val if isinstance(val, Tensor) else val[way.item]
    return tuple(map(example_size, found.shape))


def places_along(shape: tuple[int, ...], last: int | None, way: Way) -> Places | None:
    """The places among the source's numbers that a value holds; None where these are not in even steps.

    Args:
        shape: of the source.
        last: the source's axis that counts fastest, where that is not its last.
        way: the way to the value.
    """
    places: Places | None = lying(shape, last)
    parts: Any = None  # of a step that makes several: what each of them is, as views of `whole`
    whole = torch.empty(0, device="meta")
    for step in way.steps:
        if places is None:
            return None
        if step.op in _KEEPING_ORDER:
            places = places.shaped(tuple(map(example_size, step.shape)))
            continue
        if step.target is operator.getitem:
            made = parts[step.args[1]]
        else:
            whole = torch.empty(places.shape, device="meta")
            made = _called(step, whole)
        if isinstance(made, Tensor):
            places = places.viewed(whole, made)
        elif made is None:
            return None
        parts = made
    return places


def written(way: Way) -> str:
    """The steps of a way as text, their tensors left out."""
    return "; ".join(_told(step) for step in way.steps)


def _called(step: Value, current: Any) -> Any:
    """What a step makes of a tensor; None where it can't be carried out."""
    read = tensors_of(step)[0]

    def put(argument: Any) -> Any:
        if isinstance(argument, Value):
            return current if argument is read else size_of(argument.val)
        return size_of(argument)

    try:
        return step.target(*fx.node.map_aggregate(step.args, put), **fx.node.map_aggregate(step.kwargs, put))
    except (RuntimeError, TypeError, NotImplementedError, ValueError, IndexError):
        return None


def _told(step: Value) -> str:
    def put(argument: Any) -> Any:
        if isinstance(argument, Value):
            return "_" if isinstance(argument.val, Tensor | tuple | list) else size_of(argument.val)
        return size_of(argument)

    return f"{step.target} {fx.node.map_aggregate((step.args, step.kwargs), put)}"
