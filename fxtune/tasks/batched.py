"""Branches that compute the same with other weights, run as one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from fxtune.tracing import Region

_NUMBERS = 2**20
"""Of a value, for all branches that run together: beyond, the values of a step no longer stay in a processor's cache
until the next one reads them, and one branch after another is faster."""


class Batched:
    """Some branches of one kind. What is not the very same tensor in all of them is stacked, so that gradients flow to
    every branch's own weights. As many run together as their values are small; one after another in an exported
    program, whose batch has no size yet.

    Args:
        branches: of one kind.
    """

    def __init__(self, branches: Sequence[Region]) -> None:
        self._branches = list(branches)

    def every(self, values: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Each branch's results for all samples.

        Args:
            values: what the branches read, a row a sample.
        """
        alone = len(self._branches) == 1 or torch.compiler.is_exporting()
        several = 1 if alone else _several(value.numel() for value in values)
        if several == 1:
            return [_tuple(branch(*values)) for branch in self._branches]
        results = self._together(self._stack(), values, (0, *(None for _ in values)), several)
        return [tuple(result[i] for result in results) for i in range(len(self._branches))]

    def chosen(self, values: Sequence[Tensor], which: Sequence[int], rows: Sequence[bool]) -> list[tuple[Tensor, ...]]:
        """One branch's results for each sample, without the batch axis.

        Args:
            values: what the branches read, for these samples.
            which: the branch of each sample.
            rows: which of the values have a row for each sample.
        """
        if len(set(which)) == 1:
            results = _tuple(self._branches[which[0]](*values))
        else:
            index = torch.tensor(which, device=values[0].device)
            weights = {name: stacked[index] for name, stacked in self._stack().items()}
            single = [value.unsqueeze(1) if row else value for value, row in zip(values, rows, strict=True)]
            axes = (0, *(0 if row else None for row in rows))
            several = _several(
                value[0].numel() if row else value.numel() for value, row in zip(values, rows, strict=True)
            )
            apart = self._together(weights, single, axes, several)
            results = tuple(result.squeeze(1) for result in apart)
        return [tuple(result[i] for result in results) for i in range(len(which))]

    def _together(
        self, weights: Mapping[str, Tensor], values: Sequence[Tensor], axes: tuple[int | None, ...], several: int
    ) -> tuple[Tensor, ...]:
        with _quiet():
            run = vmap(self._run, in_dims=axes, randomness="different", chunk_size=several)
            results: tuple[Tensor, ...] = run(weights, *values)
        return results

    def _run(self, weights: Mapping[str, Tensor], *values: Tensor) -> tuple[Tensor, ...]:
        return _tuple(functional_call(self._branches[0], dict(weights), values))

    def _stack(self) -> dict[str, Tensor]:
        """What differs between the branches, stacked anew each time: a copy of it would not notice a change."""
        first, *others = map(_state, self._branches)
        return {
            name: torch.stack([tensor, *(other[name] for other in others)])
            for name, tensor in first.items()
            if any(other[name] is not tensor for other in others)
        }


def _several(numbers: Iterable[int]) -> int:
    """How many run together, by how many numbers each of the values has for one."""
    return max(1, _NUMBERS // max([1, *numbers]))


@contextmanager
def _quiet() -> Iterator[None]:
    """Average pooling of maps that lie channels last sets strides, which torch does for one branch after another and
    warns of; it takes no time."""
    if torch.compiler.is_compiling():
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
        yield


def _state(branch: Region) -> dict[str, Tensor]:
    return {**dict(branch.named_parameters()), **dict(branch.named_buffers())}


def _tuple(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else tuple(results) if isinstance(results, list) else (results,)
