"""What a cache was made of and with, in a few words each: enough to refuse it elsewhere, and to say why."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxtune.caching.batches import Batch
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


def same_inputs(one: Batch, other: Batch) -> bool:
    """Whether two reads of the same samples gave the same numbers."""
    pairs = list(zip(one.inputs(), other.inputs(), strict=False))
    return len(pairs) == len(one.inputs()) == len(other.inputs()) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in pairs
    )


def each_sample(batch: Batch) -> Tensor:
    """A number for what the model is given for each sample: 64 bits, as integers."""
    found = []
    for i in range(batch.size):
        parts = [tensor[i] for tensor in batch.inputs() if tensor.dim() and tensor.shape[0] == batch.size]
        found.append(int(digest_of_text("".join(map(digest_of, parts)), size=8), 16) - 2**63)
    return torch.tensor(found, dtype=torch.int64)
