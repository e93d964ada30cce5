"""Writing shards: some samples each, every shard in one step, so that complete ones outlive an interruption."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fxtune.caching.batches import Batch
from fxtune.caching.files import read_array, rows_of, shard_name, write_shard
from fxtune.caching.fingerprints import each_sample
from fxtune.caching.layout import flatten
from fxtune.caching.plan import Plan
from fxtune.errors import CacheError
from fxtune.splitting import Features

CHECK = "inputs"
"""The array of a number for each sample, made of inputs and labels."""


class Shards:
    """The shards of a cache that is being made.

    Args:
        folder: where they lie.
        plan: what they hold.
        shard_bytes: about how large one is.
    """

    def __init__(self, folder: Path, plan: Plan, shard_bytes: int) -> None:
        self.folder, self.plan = folder, plan
        self.rows = max(1, shard_bytes // max(1, plan.bytes))

    def view(self, view: int) -> ViewWriter:
        """Writes one view, from where it was left."""
        return ViewWriter(self, view)

    def bytes_there(self) -> int:
        """What complete shards take."""
        return sum(sum(self.there(view)) * self.plan.bytes for view in range(self.plan.views))

    def there(self, view: int) -> list[int]:
        """The rows of a view's complete shards, up to the first that is missing or broken."""
        rows: list[int] = []
        while (found := rows_of(self.folder / shard_name(view, len(rows)), set(self.plan.arrays))) is not None:
            rows.append(found)
        return rows


class ViewWriter:
    """Writes the shards of one view, in the order of its samples."""

    def __init__(self, shards: Shards, view: int) -> None:
        self._shards, self._view = shards, view
        self._rows = shards.there(view)
        self._there = sum(self._rows)
        self._seen = 0
        self._waiting: list[tuple[dict[str, Tensor], dict[str, list[str]]]] = []
        self._checks = self._stored_checks()

    def missing(self, batch: Batch, *, checked: bool) -> Iterator[Batch]:
        """What of the next batch is not stored yet.

        Args:
            batch: the next one.
            checked: whether what is stored must have been made of the very same inputs and labels.

        Raises:
            CacheError: it was made of others.
        """
        start = min(max(self._there - self._seen, 0), batch.size)
        if start and checked:
            numbers = each_sample(batch.part(0, start))
            if not torch.equal(numbers, self._checks[self._seen : self._seen + start]):
                raise CacheError(
                    "a half-made feature cache cannot be gone on with",
                    found="other inputs or labels than before for the samples "
                    f"{self._seen} to {self._seen + start - 1}",
                    where=str(self._shards.folder),
                    fix="give the samples in the same order each time (shuffle=False), or delete the folder",
                )
        self._seen += batch.size
        if start < batch.size:
            yield batch.part(start, batch.size)

    def add(self, batch: Batch, features: Features) -> None:
        """Stores a batch; a shard is written when it is full."""
        structure, rest, texts = flatten(batch.rest, batch.size)
        plan = self._shards.plan
        arrays = {**features, **rest, CHECK: each_sample(batch)}
        self._check(arrays, structure)
        self._waiting.append(({name: plan.arrays[name].packed(value.cpu()) for name, value in arrays.items()}, texts))
        if sum(len(waiting[CHECK]) for waiting, _ in self._waiting) >= self._shards.rows:
            self._write()

    def finish(self) -> list[int]:
        """Writes what is left; gives the rows of each shard."""
        if self._waiting:
            self._write()
        return self._rows

    def _write(self) -> None:
        names = self._waiting[0][0]
        arrays = {name: torch.cat([waiting[name] for waiting, _ in self._waiting]) for name in names}
        texts = {name: [text for _, waiting in self._waiting for text in waiting[name]] for name in self._waiting[0][1]}
        write_shard(self._shards.folder / shard_name(self._view, len(self._rows)), arrays, texts)
        self._rows.append(len(arrays[CHECK]))
        self._waiting = []

    def _check(self, arrays: dict[str, Tensor], structure: object) -> None:
        plan = self._shards.plan
        for name, array in plan.arrays.items():
            found = arrays.get(name)
            if found is None or tuple(found.shape[1:]) != array.shape or found.dtype != array.given:
                shape = "nothing" if found is None else f"{tuple(found.shape[1:])} of {found.dtype}"
                raise CacheError(
                    "the samples are not alike, so their features cannot be stored together",
                    found=f"{name} is {shape} for a sample, and was {array.shape} of {array.given} for the first ones",
                    fix="bring the samples to one size: resize images, pad texts to one length",
                )
        if structure != plan.structure:
            raise CacheError(
                "the dataloader's batches are not alike",
                found=f"beside the inputs there is {structure}, and was {plan.structure} at first",
            )

    def _stored_checks(self) -> Tensor:
        shards = (self._shards.folder / shard_name(self._view, number) for number in range(len(self._rows)))
        return torch.cat([torch.empty(0, dtype=torch.int64), *(read_array(shard, CHECK) for shard in shards)])
