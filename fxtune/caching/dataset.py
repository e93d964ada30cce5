"""A finished cache: what it holds, and batches of it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import Dataset

from fxtune.caching.files import read_texts, shard_name
from fxtune.caching.layout import restore, texts_in
from fxtune.caching.plan import Plan
from fxtune.errors import CacheError
from fxtune.splitting import Features

Item = tuple[Features, Any]
"""Features, and what else there was in the dataloader's batches: labels, names."""


class FeatureCache(Dataset[Item]):
    """Features of every sample, and its labels, on disk.

    Shards are mapped into memory: what is not read takes none. The n-th sample is the dataset's n-th, whatever order it
    was cached in by a shuffled `DataLoader`. It is a map-style dataset, so that a `DataLoader` reads it as well.

    Attributes:
        folder: where it lies.
        views: how often each sample was stored, with other random augmentation.
    """

    def __init__(self, folder: Path, plan: Plan, rows: Sequence[Sequence[int]]) -> None:
        self.folder, self.views = folder, plan.views
        self._plan = plan
        self._starts = [[0, *accumulate(of_view)] for of_view in rows]

    def __len__(self) -> int:
        return self._starts[0][-1]

    @property
    def bytes(self) -> int:
        """Of all samples and views, on disk."""
        return len(self) * self.views * self._plan.bytes

    def __getitem__(self, index: int) -> Item:
        """One sample, without the batch axis; one of its views, drawn by torch's generator."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        values = self._values([index % len(self)], None)
        return self._item({name: value[0] for name, value in values.items()})

    def __repr__(self) -> str:
        return f"FeatureCache({len(self)} samples, {self.views} views, {self.bytes / 2**20:,.1f} MiB in {self.folder})"

    def loader(
        self,
        batch_size: int = 32,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        view: int | None = None,
    ) -> FeatureLoader:
        """Batches of features and labels, anew in each epoch: ``for features, labels in cache.loader(32): ...``.

        Args:
            batch_size: samples in a batch.
            shuffle: in another order in each epoch.
            drop_last: leave a smaller last batch out.
            generator: draws order and views; torch's own by default.
            device: where features and labels go.
            view: one of the views; by default each sample's is drawn in each epoch.
        """
        if view is not None and not 0 <= view < self.views:
            raise CacheError("there is no such view", found=f"view={view} of {self.views}", fix="count from 0")
        if batch_size < 1:
            raise CacheError("a batch needs a sample", found=f"batch_size={batch_size}")
        return FeatureLoader(self, batch_size, shuffle, drop_last, generator, device, view)

    def batch(self, indices: Sequence[int], views: Sequence[int] | None = None) -> Item:
        """These samples, each in the view that is given for it; drawn by torch's generator if none are."""
        return self._item(self._values(indices, views))

    def _item(self, values: dict[str, Any]) -> Item:
        return {name: values[name] for name in self._plan.features}, restore(self._plan.structure, values)

    def _values(self, indices: Sequence[int], views: Sequence[int] | None) -> dict[str, Any]:
        """Tensors and lists of texts by name, one row a sample."""
        chosen = views if views is not None else _drawn(self.views, len(indices), None)
        places = [self._place(index, view) for index, view in zip(indices, chosen, strict=True)]
        arrays = {name: self._gathered(name, places) for name in self._plan.arrays}
        texts = {
            name: [self._texts(view, number)[name][row] for view, number, row in places]
            for name in texts_in(self._plan.structure)
        }
        return {**arrays, **texts}

    def _gathered(self, name: str, places: Sequence[tuple[int, int, int]]) -> Tensor:
        array = self._plan.arrays[name]
        made = array.empty(len(places))
        rows: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
        for position, (view, number, row) in enumerate(places):
            to, of = rows.setdefault((view, number), ([], []))
            to.append(position)
            of.append(row)
        for key, (to, of) in rows.items():
            made[to] = self._shard(*key)[name][of].to(array.given)
        return array.unpacked(made)

    def _place(self, index: int, view: int) -> tuple[int, int, int]:
        """View, shard and row of a sample."""
        starts = self._starts[view]
        number = bisect_right(starts, index) - 1
        return view, number, index - starts[number]

    def _shard(self, view: int, number: int) -> dict[str, Tensor]:
        if (view, number) not in self._mapped:
            self._mapped[view, number] = load_file(self.folder / shard_name(view, number))
        return self._mapped[view, number]

    def _texts(self, view: int, number: int) -> dict[str, list[str]]:
        if (view, number) not in self._read:
            self._read[view, number] = read_texts(self.folder / shard_name(view, number))
        return self._read[view, number]

    @cached_property
    def _mapped(self) -> dict[tuple[int, int], dict[str, Tensor]]:
        return {}

    @cached_property
    def _read(self) -> dict[tuple[int, int], dict[str, list[str]]]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes map the shards themselves."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_mapped", "_read")}


class FeatureLoader:
    """Goes through a cache batch by batch, anew each time."""

    def __init__(
        self,
        cache: FeatureCache,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
        generator: torch.Generator | None,
        device: torch.device | str | None,
        view: int | None,
    ) -> None:
        self.dataset, self.batch_size = cache, batch_size
        self._shuffle, self._drop_last, self._generator = shuffle, drop_last, generator
        self._device, self._view = device, view

    def __len__(self) -> int:
        whole, more = divmod(len(self.dataset), self.batch_size)
        return whole + (more > 0 and not self._drop_last)

    def __iter__(self) -> Iterator[Item]:
        count = len(self.dataset)
        order = torch.randperm(count, generator=self._generator).tolist() if self._shuffle else list(range(count))
        views = [self._view] * count if self._view is not None else _drawn(self.dataset.views, count, self._generator)
        for i in range(len(self)):
            part = slice(i * self.batch_size, (i + 1) * self.batch_size)
            yield _on(self.dataset.batch(order[part], views[part]), self._device)


def _drawn(views: int, count: int, generator: torch.Generator | None) -> list[int]:
    return [0] * count if views == 1 else torch.randint(views, (count,), generator=generator).tolist()


def _on(value: Any, device: torch.device | str | None) -> Any:
    if device is None:
        return value
    return tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), value)
