"""Which axis of a value holds its channels, found by following the operators."""

from __future__ import annotations

from typing import Any

import torch

from fxtune.view.values import Value, written
from fxtune.vocabulary import RESHAPING

LAST = frozenset(["linear", "addmm", "embedding", "layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm"])
"""Operators that leave the channels on the last axis."""

SECOND = frozenset(
    [
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "convolution",
        "batch_norm",
        "native_batch_norm",
        "group_norm",
        "native_group_norm",
        "instance_norm",
    ]
)
"""Operators that leave the channels on axis 1."""


def _moved(value: Value, axis: int) -> int | None:
    rank = len(value.shape)
    if value.op == "permute":
        order = [int(d) % rank for d in value.args[1]]
        return order.index(axis)
    if value.op in ("transpose", "swapaxes", "swapdims"):
        first, second = (int(d) % rank for d in value.args[1:3])
        return {first: second, second: first}.get(axis, axis)
    if value.op in ("t", "mT", "mH", "adjoint"):
        first, second = rank - 2, rank - 1
        return {first: second, second: first}.get(axis, axis)
    return None


def _reshaped(value: Value, source: Value, axis: int) -> int | None:
    """Channels survive a reshape where they stay the last axis, or axis 1 after an untouched batch axis."""
    old, new = source.shape, value.shape
    if axis == len(old) - 1 and new and _same(old[-1], new[-1]):
        return len(new) - 1
    if axis == 1 and len(new) > 1 and _same(old[0], new[0]) and _same(old[1], new[1]):
        return 1
    return None


def _same(a: Any, b: Any) -> bool:
    """Equality of sizes as they are written; no guard is put on a symbolic size."""
    return written(a) == written(b)


def channel_axes(values: list[Value]) -> dict[int, int]:
    """The channel axis (from the front) of every value for which the operators tell it, by value id."""
    axes: dict[int, int] = {}
    for value in values:
        if not isinstance(value.val, torch.Tensor):
            continue
        axis = _axis(value, axes)
        if axis is not None:
            axes[value.id] = axis
        for read in value.inputs()[:1]:
            # What enters the model has no operator behind it: the one that reads it tells.
            if read.id not in axes and read.shape and (value.op in LAST or value.op in SECOND):
                axes[read.id] = len(read.shape) - 1 if value.op in LAST else 1
    return axes


def _axis(value: Value, axes: dict[int, int]) -> int | None:
    rank = len(value.shape)
    if value.op in LAST:
        return rank - 1
    if value.op in SECOND:
        return 1
    inputs = [v for v in value.inputs() if v.id in axes]
    if not inputs:
        return None
    source = inputs[0]
    if value.op in ("permute", "transpose", "swapaxes", "swapdims", "t", "mT", "mH", "adjoint"):
        return _moved(value, axes[source.id])
    if value.op in RESHAPING:
        return _reshaped(value, source, axes[source.id])
    same_rank = [v for v in inputs if len(v.shape) == rank]
    return axes[same_rank[0].id] if same_rank else None
