"""Which samples make up which step: a function of the seed and the step's number alone.

So a training that goes on after a kill needs no stored random state, and neither the number of processes nor that of
loading workers changes what a step computes, but for the noise of dropout.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch.utils.data import Sampler


class Key(NamedTuple):
    """One sample of one step.

    Attributes:
        epoch: from 0; with the sample it is the seed of the sample's augmentation.
        sample: its number in the split.
        counts: False for a sample that only fills a process's share, which else would be empty.
    """

    epoch: int
    sample: int
    counts: bool = True


def seed_of(*parts: int | str) -> int:
    """A seed that depends on all of these, for `torch.manual_seed`."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Order:
    """The batches of a training.

    Attributes:
        samples: in the split.
        batch: of a step; the last one of an epoch has what is left.
        seed: of the order, which is another one in each epoch.
    """

    samples: int
    batch: int
    seed: int

    @property
    def steps(self) -> int:
        """In an epoch."""
        return -(-self.samples // self.batch)

    def keys(self, step: int) -> list[Key]:
        """The samples of a step, counted from 0 over all epochs."""
        epoch, number = divmod(step, self.steps)
        order = _permutation(self.samples, seed_of("order", self.seed, epoch))
        return [Key(epoch, index) for index in order[number * self.batch : (number + 1) * self.batch]]


def shares(keys: Sequence[Key], count: int) -> list[list[Key]]:
    """Samples in so many pieces, one after the other, of sizes that differ by one at most; no piece is empty.

    Where there are too few, the first sample fills the rest, and does not count there.
    """
    bounds = [len(keys) * i // count for i in range(count + 1)]
    filler = [keys[0]._replace(counts=False)]
    return [list(keys[a:b]) or filler for a, b in itertools.pairwise(bounds)]


class Pieces(Sampler[list[Key]]):
    """What one process loads, piece by piece: so many pieces of each step from `first` on.

    Args:
        order: the batches.
        steps: numbers of the steps.
        process: number of this process.
        processes: how many there are.
        accumulate: pieces of a step in one process.
    """

    def __init__(self, order: Order, steps: range, process: int, processes: int, accumulate: int) -> None:
        self.order, self.steps = order, steps
        self.process, self.processes, self.accumulate = process, processes, accumulate

    def __len__(self) -> int:
        return len(self.steps) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        for step in self.steps:
            own = shares(self.order.keys(step), self.processes)[self.process]
            yield from shares(own, self.accumulate)


@lru_cache(maxsize=4)
def _permutation(samples: int, seed: int) -> list[int]:
    found: list[int] = torch.randperm(samples, generator=torch.Generator().manual_seed(seed)).tolist()
    return found
