"""Inputs of another batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from fxtune.errors import InputError
from fxtune.tracing import CallSignature

Call = tuple[tuple[Any, ...], dict[str, Any]]


def with_batch(signature: CallSignature, call: Call, batch: int) -> Call:
    """The call with so many samples: new tensors without values in the place of those that have a batch.

    Raises:
        InputError: the captured model takes no such batch.
    """
    tensors = signature.bind(*call)
    ids = {id(tensors[index]) for index in signature.batched}
    if not ids and {tensor.shape[0] for tensor in tensors if tensor.dim()} != {batch}:
        places = (place for place, _ in signature.tensors())
        shapes = ", ".join(f"{place} {tuple(tensor.shape)}" for place, tensor in zip(places, tensors, strict=True))
        raise InputError(
            f"The batch of this {signature.model} can't be changed to {batch}",
            found=f"no first dimension that may vary, and is the same wherever it may: {shapes}",
            fix="pass example_inputs of the batch that you mean, or, with a batch of 2 or more, such as may vary",
        )
    changed: Call = tree_map(
        lambda leaf: leaf.new_empty((batch, *leaf.shape[1:])) if isinstance(leaf, Tensor) and id(leaf) in ids else leaf,
        call,
    )
    reason = signature.accepts(*changed)
    if reason is not None:
        raise InputError(
            f"This {signature.model} does not take a batch of {batch}",
            found=reason,
            fix="choose another batch, or pass example_inputs of this one",
        )
    return changed


def batch_of(signature: CallSignature, call: Call) -> int | None:
    """The call's batch; None where no input has one."""
    tensors = signature.bind(*call)
    return next((tensors[index].shape[0] for index in signature.batched), None)
