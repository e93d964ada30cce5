"""The data that is cached: read in one order, and found out about before the long run."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from fxtune.caching.batches import Batch
from fxtune.errors import CacheError

_FEW = 32
"""Samples that are read twice: a flip of one image in two goes unnoticed once in 2^32."""


class Source:
    """A dataloader, read so that the n-th sample is the same one each time.

    A shuffled `DataLoader` is read in the order of its dataset, and its last, smaller batch is not dropped: the cache's
    own loader shuffles. Any other iterable is read as it is, and must not shuffle.

    Args:
        loader: a dataloader, or anything that gives batches and can be gone through again.
        take_apart: a batch as inputs and rest.

    Raises:
        CacheError: it gives nothing, or can be gone through once only.
    """

    def __init__(self, loader: Iterable[Any], take_apart: Callable[[Any], Batch]) -> None:
        if iter(loader) is loader:
            raise CacheError(
                "the dataloader can be gone through once only, and its first batch is looked at before",
                found=f"a {type(loader).__name__}",
                fix="pass a DataLoader, a list of batches, or an object whose __iter__ begins anew",
            )
        self._loader = _in_order(loader)
        self._take_apart = take_apart

    def __iter__(self) -> Iterator[Batch]:
        return map(self._take_apart, self._loader)

    @property
    def samples(self) -> int | None:
        """How many samples there are, where that is known without reading them."""
        batches = _indexed(self._loader)
        return len(batches.sampler) if batches is not None and isinstance(batches.sampler, Sized) else None

    @property
    def batches(self) -> int | None:
        """How many batches there are, where that is known."""
        try:
            return len(self._loader)  # type: ignore[arg-type]
        except TypeError:
            return None

    def first(self, seed: int) -> Batch:
        """The first samples, read with Python's, torch's and numpy's generators at a seed."""
        with _seeded(seed):
            loader: Any = self._loader
            batches = _indexed(loader)
            if batches is not None:
                chosen = list(itertools.islice(batches.sampler, max(batches.batch_size, _FEW)))
                samples = [loader.dataset[index] for index in chosen]
                if samples:
                    return self._take_apart(loader.collate_fn(samples))
            for batch in loader:
                return self._take_apart(batch)
        raise CacheError("there is nothing to cache", found="a dataloader without batches")


def _indexed(loader: Any) -> BatchSampler | None:
    """How a DataLoader puts its dataset's samples into batches, where it does so by their indices, in the usual way."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    return loader.batch_sampler if type(loader.batch_sampler) is BatchSampler else None


def _in_order(loader: Iterable[Any]) -> Iterable[Any]:
    """A shuffled DataLoader's samples in the order of its dataset."""
    batches = _indexed(loader)
    if batches is None or not isinstance(loader, DataLoader):
        return loader
    sampler = batches.sampler
    drawn_again = isinstance(sampler, RandomSampler) and (sampler.replacement or len(sampler) != len(loader.dataset))  # type: ignore[arg-type]
    if type(sampler) not in (RandomSampler, SequentialSampler) or drawn_again:
        return loader
    return DataLoader(
        loader.dataset,
        batch_size=batches.batch_size,
        shuffle=False,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The generators that data are usually augmented with, at a seed; afterwards as they were."""
    numpy: Any = sys.modules.get("numpy")
    states = random.getstate(), numpy and numpy.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        if numpy:
            numpy.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            if numpy:
                numpy.random.set_state(states[1])
