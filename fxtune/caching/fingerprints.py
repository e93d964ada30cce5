"""What a cache was made of and with, in a few words each: enough to refuse it elsewhere, and to say why."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from fxtune.caching.batches import Batch
from fxtune.caching.layout import flatten
from fxtune.digests import digest_of, digest_of_text
from fxtune.splitting import structure_of, tensors_of
from fxtune.tracing import Region


def weights_of(trunk: Region) -> dict[str, str]:
    """Every weight and buffer that a trunk computes with, by name: what is in it."""
    return {name: digest_of(tensor) for name, tensor in sorted(tensors_of(trunk).items())}


def computing_of(trunk: Region) -> str:
    """What a trunk computes."""
    return digest_of_text(structure_of(trunk))


def inputs_of(batch: Batch, again: Batch) -> dict[str, Any]:
    """What the model is given for the first samples, read twice in one way; only its form, where that differs."""
    one, two = ([digest_of(tensor) for tensor in read.inputs()] for read in (batch, again))
    form = [[str(tensor.dtype), list(tensor.shape)] for tensor in batch.inputs()]
    return {"form": form, "values": one if one == two else None}


def rest_of(batch: Batch, again: Batch) -> list[str] | None:
    """What there is beside the inputs for the first samples, read twice in one way: labels; None where that differs."""
    one, two = map(_beside, (batch, again))
    return one if one == two else None


def _beside(batch: Batch) -> list[str]:
    _, arrays, texts = flatten(batch.rest, batch.size)
    return [*map(digest_of, arrays.values()), *(digest_of_text(json.dumps(own)) for own in texts.values())]


def same_inputs(one: Batch, other: Batch) -> bool:
    """Whether two reads of the same samples gave the same numbers."""
    pairs = list(zip(one.inputs(), other.inputs(), strict=False))
    return len(pairs) == len(one.inputs()) == len(other.inputs()) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in pairs
    )


def each_sample(batch: Batch) -> Tensor:
    """A number for what there is of each sample, inputs and labels: 64 bits, as integers."""
    _, arrays, texts = flatten(batch.rest, batch.size)
    tensors = [tensor for tensor in batch.inputs() if tensor.dim() and tensor.shape[0] == batch.size]
    found = []
    for i in range(batch.size):
        parts = [digest_of(tensor[i]) for tensor in (*tensors, *arrays.values())]
        told = "".join(parts) + json.dumps([own[i] for own in texts.values()])
        found.append(int(digest_of_text(told, size=8), 16) - 2**63)
    return torch.tensor(found, dtype=torch.int64)
