"""Values that are computed from no input and no weight: the numbers that they are."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from fxtune.view import Value, example_size
from fxtune.vocabulary import RANDOM

_MOST_NUMBERS = 2**22

_OF_DTYPES = (getattr, torch.finfo, torch.iinfo)
"""What code asks of a tensor's dtype, such as the smallest number that it can hold."""

_MADE_ELSEWHERE = frozenset({"param", "buffer", "input", "opaque", *RANDOM})


def constants(values: list[Value]) -> dict[int, Tensor]:
    """Value id -> its numbers at the example's sizes, for every tensor that depends on nothing else."""
    found: dict[int, Any] = {}
    for value in values:
        if value.target in _OF_DTYPES:
            found[value.id] = value.target(*fx.node.map_aggregate(value.args, lambda argument: _meant(argument, found)))
        elif isinstance(value.val, Tensor) and value.op not in _MADE_ELSEWHERE and _small(value):
            tensor = _computed(value, found)
            if tensor is not None:
                found[value.id] = tensor
    return {id: made for id, made in found.items() if isinstance(made, Tensor)}


def _meant(argument: Any, known: dict[int, Any]) -> Any:
    return known.get(argument.id, argument.val) if isinstance(argument, Value) else argument


def says_nothing(mask: Tensor) -> bool:
    """Whether an attention mask leaves everything as it is."""
    return bool(mask.all()) if mask.dtype == torch.bool else not bool(mask.any())


def _small(value: Value) -> bool:
    return math.prod(map(example_size, value.shape)) <= _MOST_NUMBERS


def _computed(value: Value, known: dict[int, Any]) -> Tensor | None:
    if any(isinstance(read.val, Tensor | tuple | list) and read.id not in known for read in value.inputs()):
        return None

    def number(argument: Any) -> Any:
        found = _meant(argument, known)
        return torch.device("cpu") if isinstance(found, torch.device) else size_of(found)

    try:
        result = value.target(*fx.node.map_aggregate(value.args, number), **fx.node.map_aggregate(value.kwargs, number))
    except (RuntimeError, TypeError, NotImplementedError, ValueError, IndexError):
        return None
    return result if isinstance(result, Tensor) and not result.is_meta else None


def size_of(argument: Any) -> Any:
    """A symbolic size as it is in the example; anything else as it is."""
    return example_size(argument) if isinstance(argument, torch.SymInt) else argument
