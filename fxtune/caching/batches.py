"""What of a dataloader's batch the model is called with, and what else there is: labels, names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from fxtune.errors import CacheError
from fxtune.tracing import call_inputs

SplitBatch: TypeAlias = Callable[[Any], tuple[Any, Any]]
"""From a batch to the pair of what the model is called with (in the forms of `example_inputs`) and the rest."""


NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float64}
"""The kinds of plain numbers, and what holds every one of them exactly (whole ones up to 64 bits)."""


@dataclass(frozen=True)
class Batch:
    """A batch, taken apart.

    Attributes:
        args, kwargs: what the model is called with.
        rest: everything else, as it came.
        size: how many samples it has.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rest: Any
    size: int

    def part(self, start: int, stop: int) -> Batch:
        """Some of the samples."""
        if (start, stop) == (0, self.size):
            return self

        def cut(value: Any) -> Any:
            return value[start:stop] if per_sample(value, self.size) else value

        args, kwargs = pytree.tree_map(cut, (self.args, self.kwargs), is_leaf=is_item)
        rest = pytree.tree_map(cut, self.rest, is_leaf=lambda value: is_item(value) or is_numbers(value))
        return Batch(args, kwargs, rest, stop - start)

    def inputs(self) -> list[Tensor]:
        """The tensors that the model is called with."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]


def take_apart(batch: Any, names: Collection[str], split_batch: SplitBatch | None) -> Batch:
    """A batch as what the model is called with, and the rest.

    Args:
        batch: of a dataloader. A mapping's entries that the model was captured with are its inputs; of a tuple, the
            first item is (a tensor, a tuple of arguments, a mapping of keywords); a tensor is the input.
        names: what the model calls its tensor arguments.
        split_batch: does it in another way.

    Raises:
        CacheError: no inputs are found in it.
    """
    given, rest = split_batch(batch) if split_batch else _usual(batch, names)
    if not isinstance(given, Tensor | Mapping | tuple | list):
        raise _unread(batch, names)
    args, kwargs = call_inputs(_NO_MODEL, dict(given) if isinstance(given, Mapping) else given)
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim()]
    if not tensors:
        raise _unread(batch, names)
    return Batch(args, kwargs, rest, tensors[0].shape[0])


def is_item(value: Any) -> bool:
    """Whether a list or tuple is one value a sample, such as texts, and no structure of its own."""
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(v, str | bytes) for v in value)


def is_numbers(value: Any) -> bool:
    """Whether a list or tuple holds numbers of one kind, such as labels that nobody has made a tensor of."""
    return type(value) in (list, tuple) and len({type(v) for v in value}) == 1 and type(value[0]) in NUMBERS


def per_sample(value: Any, size: int) -> bool:
    """Whether a leaf has a value for each sample."""
    if isinstance(value, Tensor):
        return value.dim() > 0 and value.shape[0] == size
    return isinstance(value, list | tuple) and len(value) == size


def _usual(batch: Any, names: Collection[str]) -> tuple[Any, Any]:
    if isinstance(batch, Mapping):
        inputs = {name: value for name, value in batch.items() if name in names}
        rest = {name: value for name, value in batch.items() if name not in names}
        return inputs, rest or None
    if isinstance(batch, list | tuple) and batch:
        first, *others = batch
        return first, others[0] if len(others) == 1 else tuple(others) or None
    return batch, None


def _unread(batch: Any, names: Collection[str]) -> CacheError:
    kind = type(batch).__name__
    if isinstance(batch, Mapping):
        found = f"a {kind} of {', '.join(map(str, batch))}, where the model takes {', '.join(names)}"
    elif isinstance(batch, list | tuple):
        found = f"a {kind} of {', '.join(type(item).__name__ for item in batch) or 'nothing'}"
    else:
        found = f"a {kind}"
    return CacheError(
        "the model's inputs were not found in the dataloader's batches",
        found=found,
        fix="say what they are: split_batch=lambda batch: (batch['image'], batch['label'])",
    )


_NO_MODEL: Any = None
