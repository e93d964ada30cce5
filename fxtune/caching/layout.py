"""What a cache holds of each sample: named arrays, and how the rest of a batch is put together from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxtune.caching.batches import NUMBERS, is_item, is_numbers, per_sample
from fxtune.errors import CacheError

Structure = Any
"""``{"tuple": [...]}``, ``{"list": [...]}``, ``{"dict": {...}}``, ``{"array": name}``, ``{"texts": name}``,
``{"numbers": name}`` or ``{"number_tuple": name}`` for plain numbers, one a sample, and ``{"value": v}`` for what is
the same in every batch."""


@dataclass(frozen=True)
class Array:
    """One value of every sample.

    Attributes:
        shape: of one sample.
        stored: its dtype on disk.
        given: its dtype when it is read.
        order: its axes as they lie in memory, counted without the batch: kernels may round by it.
    """

    shape: tuple[int, ...]
    stored: torch.dtype
    given: torch.dtype
    order: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Of one sample."""
        return math.prod(self.shape) * self.stored.itemsize

    def packed(self, batch: Tensor) -> Tensor:
        """A batch as it is stored: contiguous, its axes in the order in which they lie in memory."""
        return batch.permute(0, *(axis + 1 for axis in self.order)).to(self.stored).contiguous()

    def empty(self, count: int) -> Tensor:
        """Room for so many samples as they are stored, in the dtype in which they are read."""
        return torch.empty(count, *(self.shape[axis] for axis in self.order), dtype=self.given)

    def unpacked(self, stored: Tensor) -> Tensor:
        """The way back from the order in which it is stored."""
        return stored.permute(0, *(self.order.index(axis) + 1 for axis in range(len(self.shape))))

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "shape": list(self.shape),
            "stored": _name(self.stored),
            "given": _name(self.given),
            "order": list(self.order),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Array:
        """From plain data."""
        return cls(tuple(data["shape"]), _dtype(data["stored"]), _dtype(data["given"]), tuple(data["order"]))


def array_of(tensor: Tensor, dtype: torch.dtype | None = None) -> Array:
    """How a batch of values is stored; floating ones in `dtype` if it is given."""
    stored = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    strides = tensor.stride()[1:]
    order = sorted(range(len(strides)), key=lambda axis: -strides[axis])
    return Array(tuple(tensor.shape[1:]), stored, tensor.dtype, tuple(order))


def flatten(rest: Any, size: int, name: str = "rest") -> tuple[Structure, dict[str, Tensor], dict[str, list[Any]]]:
    """The rest of a batch as its structure, its arrays and its lists of texts, by name.

    Raises:
        CacheError: something in it can't be stored.
    """
    arrays: dict[str, Tensor] = {}
    texts: dict[str, list[Any]] = {}

    def walk(value: Any, name: str) -> Structure:
        if isinstance(value, Tensor) and per_sample(value, size):
            arrays[name] = value.detach().cpu()
            return {"array": name}
        if is_item(value) and per_sample(value, size) and all(isinstance(v, str) for v in value):
            texts[name] = list(value)
            return {"texts": name}
        if is_numbers(value) and per_sample(value, size):
            arrays[name] = _numbers(value, name)
            return {"numbers" if isinstance(value, list) else "number_tuple": name}
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {"dict": {key: walk(item, f"{name}.{key}") for key, item in value.items()}}
        if type(value) in (list, tuple) and not is_item(value):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [walk(item, f"{name}.{i}") for i, item in enumerate(value)]}
        if value is None or isinstance(value, bool | int | float | str):
            return {"value": value}
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise CacheError(
            "a part of the dataloader's batches cannot be stored in a feature cache",
            found=f"`{name}` is a {type(value).__name__}{shape} in a batch of {size}",
            fix="batches may hold tensors with one row a sample, lists of texts or numbers, and dicts, lists and "
            "tuples of these; leave the rest out: split_batch=lambda batch: (inputs, labels)",
        )

    return walk(rest, name), arrays, texts


def _numbers(value: Sequence[Any], name: str) -> Tensor:
    try:
        return torch.tensor(value, dtype=NUMBERS[type(value[0])])
    except (OverflowError, RuntimeError, ValueError) as error:
        raise CacheError(
            "a number in the dataloader's batches cannot be stored in a feature cache",
            found=f"`{name}`: {error}",
            fix="keep whole numbers below 2^63, or leave it out: split_batch=lambda batch: (inputs, labels)",
        ) from None


def restore(structure: Structure, values: Mapping[str, Any]) -> Any:
    """The rest of a batch, from its arrays and lists of texts."""
    ((kind, inside),) = structure.items()
    if kind in ("array", "texts"):
        return values[inside]
    if kind in ("numbers", "number_tuple"):
        found = values[inside].tolist()  # of one sample, a number
        return tuple(found) if kind == "number_tuple" and isinstance(found, list) else found
    if kind == "dict":
        return {key: restore(item, values) for key, item in inside.items()}
    if kind in ("list", "tuple"):
        items = [restore(item, values) for item in inside]
        return items if kind == "list" else tuple(items)
    return inside


def texts_in(structure: Structure) -> list[str]:
    """The names of the lists of texts in the rest of a batch."""
    ((kind, inside),) = structure.items()
    if kind == "texts":
        return [inside]
    below = inside.values() if kind == "dict" else inside if kind in ("list", "tuple") else ()
    return [name for item in below for name in texts_in(item)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no dtype")
    return found
