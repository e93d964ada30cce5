"""Making a cache, or taking up one that is there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from fxtune.caching.batches import Batch, SplitBatch, take_apart
from fxtune.caching.dataset import FeatureCache
from fxtune.caching.files import MANIFEST, read_json, rows_of, shard_name, write_json
from fxtune.caching.fingerprints import computing_of, each_sample, inputs_of, rest_of, same_inputs, weights_of
from fxtune.caching.layout import array_of, flatten
from fxtune.caching.plan import Plan, check_same, read_plan
from fxtune.caching.shards import CHECK, Shards
from fxtune.caching.source import Source
from fxtune.errors import CacheError
from fxtune.progress import progress
from fxtune.splitting import Features, Split
from fxtune.tracing import CallSignature

SplitFor = Callable[[tuple[Any, ...], dict[str, Any]], Split]
"""The halves of the tuned model for these inputs."""


def cache_features(
    split_for: SplitFor,
    signature: CallSignature,
    dataloader: Iterable[Any],
    folder: str | Path,
    *,
    dtype: torch.dtype | None,
    views: int | None,
    split_batch: SplitBatch | None,
    shard_bytes: int,
) -> FeatureCache:
    """What `TunedModel.cache_features` says."""
    _check_arguments(dtype, views, shard_bytes)
    folder = Path(folder)
    names = {place.partition("[")[0] for place, _ in signature.tensors()}
    source = Source(dataloader, lambda batch: take_apart(batch, names, split_batch))
    there = read_plan(folder)
    first = source.first(seed=0)
    if views is None and not same_inputs(first, source.first(seed=1)):
        raise _random()
    split = split_for(first.args, first.kwargs)
    plan = _plan(split, first, source, dtype, views or 1)
    if there is not None:
        check_same(there, plan, folder)
    rows = _finished(folder, plan)
    if rows is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            plan.write(folder)
        except OSError as error:
            raise CacheError("a feature cache can't be written here", found=str(error), where=str(folder)) from None
        rows = _fill(split, source, Shards(folder, plan, shard_bytes), checked=views is None)
        write_json(folder, MANIFEST, {"rows": rows})
    return FeatureCache(folder, plan, rows)


def _plan(split: Split, first: Batch, source: Source, dtype: torch.dtype | None, views: int) -> Plan:
    features = _computed(split, first)
    _check_per_sample(split, first, features)
    structure, rest, _ = flatten(first.rest, first.size)
    again = source.first(seed=0)
    return Plan(
        features={name: array_of(value, dtype) for name, value in features.items()},
        rest={**{name: array_of(value) for name, value in rest.items()}, CHECK: array_of(each_sample(first))},
        structure=structure,
        weights=weights_of(split.trunk),
        trunk=computing_of(split.trunk),
        inputs=inputs_of(first, again),
        beside=rest_of(first, again),
        samples=source.samples,
        views=views,
    )


def _finished(folder: Path, plan: Plan) -> list[list[int]] | None:
    """The rows of each shard of each view, if the cache is complete."""
    manifest = read_json(folder, MANIFEST) or {}
    rows: list[list[int]] = manifest.get("rows", [])
    found = [
        [rows_of(folder / shard_name(view, number), set(plan.arrays)) for number in range(len(of_view))]
        for view, of_view in enumerate(rows)
    ]
    return rows if rows and found == rows else None


def _fill(split: Split, source: Source, shards: Shards, *, checked: bool) -> list[list[int]]:
    """Computes and writes what is not there yet."""
    plan = shards.plan
    _tell_size(shards)
    rows = []
    for view in range(plan.views):
        writer = shards.view(view)
        doing = "caching features" + (f", view {view + 1} of {plan.views}" if plan.views > 1 else "")
        for batch in progress(source, doing, total=source.batches):
            for missing in writer.missing(batch, checked=checked):
                writer.add(missing, _computed(split, missing))
        rows.append(writer.finish())
    if len({sum(of_view) for of_view in rows}) > 1:
        raise CacheError(
            "the dataloader gave another number of samples when it was gone through again",
            found=", ".join(str(sum(of_view)) for of_view in rows),
            where=str(shards.folder),
            fix="give the same samples, in one order, each time",
        )
    return rows


def _computed(split: Split, batch: Batch) -> Features:
    device = next(split.trunk.parameters()).device
    args, kwargs = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), (batch.args, batch.kwargs))
    return split.features(*args, **kwargs)


def _check_per_sample(split: Split, batch: Batch, features: Features) -> None:
    """Each value that crosses has one row a sample, whatever the batch: a batch of another size has as many rows."""
    other = batch.part(0, 1) if batch.size > 1 else _doubled(batch)
    fewer = _computed(split, other)
    for name, value in features.items():
        if value.shape[:1] != (batch.size,) or fewer[name].shape != (other.size, *value.shape[1:]):
            raise CacheError(
                "a value that the bypass reads does not belong to single samples",
                found=f"{name} is {tuple(value.shape)} for {batch.size} samples, {tuple(fewer[name].shape)} for "
                f"{other.size}",
                fix="leave the cache out, or choose other stems for the bypass",
            )


def _doubled(batch: Batch) -> Batch:
    def twice(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor]) if tensor.dim() and tensor.shape[0] == batch.size else tensor

    args, kwargs = pytree.tree_map_only(Tensor, twice, (batch.args, batch.kwargs))
    return Batch(args, kwargs, None, 2 * batch.size)


def _tell_size(shards: Shards) -> None:
    """Says how much disk it takes, and refuses what does not fit.

    Raises:
        CacheError: there is not so much space.
    """
    from rich.console import Console

    plan, console = shards.plan, Console(stderr=True, highlight=False)
    each = f"{plan.bytes / 1024:,.1f} KiB a sample" + (f" and view ({plan.views} views)" if plan.views > 1 else "")
    if plan.samples is None:
        console.print(f"feature cache: {each} in {shards.folder}; how many samples there are is not known")
        return
    needed = plan.samples * plan.views * plan.bytes
    free = shutil.disk_usage(shards.folder).free
    console.print(f"feature cache: {plan.samples:,} samples take {_size(needed)} in {shards.folder} ({each})")
    missing = needed - shards.bytes_there()
    if missing > free:
        raise CacheError(
            "the disk has not enough space for this feature cache",
            found=f"{_size(missing)} to write, {_size(free)} free",
            where=str(shards.folder),
            fix="name a folder on another disk, or store less: dtype=torch.bfloat16",
        )


def _size(count: int) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _random() -> CacheError:
    return CacheError(
        "the data are augmented at random, so features that are stored once would not vary any more",
        found="the first samples differ when they are read twice",
        fix="store several views of each sample (views=8), or leave random transforms out of the dataset",
    )


def _check_arguments(dtype: object, views: object, shard_bytes: object) -> None:
    wrong = [
        (f"dtype={dtype!r}", "a floating dtype such as torch.bfloat16, or None for each value's own")
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point)
        else None,
        (f"views={views!r}", "a whole number of at least 1, or None where the data don't vary")
        if views is not None and (type(views) is not int or views < 1)
        else None,
        (f"shard_bytes={shard_bytes!r}", "a whole number of bytes")
        if type(shard_bytes) is not int or shard_bytes < 1
        else None,
    ]
    for found, expected in filter(None, wrong):
        raise CacheError("cache_features cannot take this argument", found=found, fix=f"pass {expected}")
