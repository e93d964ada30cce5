"""Branches that compute the same with other weights, run as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from fxtune.tracing import Region

Stacked = dict[str, Tensor]


class Batched:
    """Some branches of one kind. What is not the very same tensor in all of them is stacked, each time that it runs
    with gradients, so that they flow to every branch's own weights; without gradients, when it has changed.

    Args:
        branches: of one kind.
    """

    def __init__(self, branches: Sequence[Region]) -> None:
        self._branches = list(branches)
        self._known: tuple[Any, Stacked] | None = None

    def every(self, values: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Each branch's results for all samples.

        Args:
            values: what the branches read, a row a sample.
        """
        if len(self._branches) == 1:
            return [_tuple(self._branches[0](*values))]
        results = vmap(self._run, in_dims=(0, *(None for _ in values)), randomness="different")(self._stack(), *values)
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
            several = vmap(self._run, in_dims=axes, randomness="different")(weights, *single)
            results = tuple(result.squeeze(1) for result in several)
        return [tuple(result[i] for result in results) for i in range(len(which))]

    def _run(self, weights: Mapping[str, Tensor], *values: Tensor) -> tuple[Tensor, ...]:
        return _tuple(functional_call(self._branches[0], dict(weights), values))

    def _stack(self) -> Stacked:
        if torch.is_grad_enabled():
            self._known = None
            return self._stacked()
        now = [
            (tensor.data_ptr(), tensor._version) for state in map(_state, self._branches) for tensor in state.values()
        ]
        if self._known is None or self._known[0] != now:
            self._known = now, self._stacked()
        return self._known[1]

    def _stacked(self) -> Stacked:
        first, *others = map(_state, self._branches)
        return {
            name: torch.stack([tensor, *(other[name] for other in others)])
            for name, tensor in first.items()
            if any(other[name] is not tensor for other in others)
        }


def _state(branch: Region) -> dict[str, Tensor]:
    return {**dict(branch.named_parameters()), **dict(branch.named_buffers())}


def _tuple(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else tuple(results) if isinstance(results, list) else (results,)
