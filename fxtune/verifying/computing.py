"""One example through both forms, in several dtypes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from fxtune.verifying.comparing import EXACT, KINDS, Key, Measured, measure
from fxtune.verifying.example import Example
from fxtune.verifying.pair import Pair


def compute(pair: Pair, example: Example, dtypes: Sequence[torch.dtype]) -> dict[Key, Measured]:
    """How far the unbound form is off, and the original one in other dtypes than float64.

    Weights, inputs and the outputs' gradients are drawn in float64 and rounded to a dtype. From these rounded numbers
    the original form is computed in float64, as the truth.
    """
    call = pair.inputs.draw(example)
    measured: dict[Key, Measured] = {}
    for dtype in dtypes:

        def rounded(tensor: Tensor, dtype: torch.dtype = dtype) -> Tensor:
            return tensor.to(dtype, copy=True) if tensor.is_floating_point() else tensor.clone()

        def direction(name: str, output: Tensor, dtype: torch.dtype = dtype) -> Tensor:
            generator = torch.Generator().manual_seed(example.seed ^ zlib.crc32(name.encode()))
            return torch.randn(output.shape, generator=generator, dtype=torch.float64).to(dtype).to(output)

        given = call.mapped(rounded)
        pair.load(example.seed, dtype)
        unbound = pair.run("unbound", given, dtype, direction)
        original = None if dtype is EXACT else pair.run("original", given, dtype, direction)
        truth = pair.run("original", given, EXACT, direction)
        for kind in KINDS:
            theirs = original.of(kind) if original else None
            measured[dtype, kind] = measure(kind, dtype, truth.of(kind), unbound.of(kind), theirs)
    return measured
