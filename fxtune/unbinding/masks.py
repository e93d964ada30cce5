"""What a mask hides, and masks as the kernels want them."""

from __future__ import annotations

import torch
from torch import Tensor

HIDDEN = float("-inf")


def four_axes(mask: Tensor) -> Tensor:
    """A mask that broadcasts to B x H x N x S with its four axes written out."""
    return mask.reshape((1,) * (4 - mask.dim()) + mask.shape)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is added to the logits; of a boolean one, False hides."""
    if mask.dtype is not torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, HIDDEN)


def below_diagonal(queries: int, keys: int, device: torch.device) -> Tensor:
    """The causal mask N x S: True where a query sees a key, query i the keys 0 to i."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril()


def with_causal(mask: Tensor | None, causal: bool, queries: int, keys: int, device: torch.device) -> Tensor | None:
    """One mask for both, boolean or additive as the given one is; None where nothing is hidden."""
    if not causal:
        return mask
    visible = below_diagonal(queries, keys, device)
    if mask is None:
        return visible
    return mask & visible if mask.dtype is torch.bool else mask.masked_fill(~visible, HIDDEN)


def dead_rows(mask: Tensor | None, causal: bool, queries: int, keys: int) -> Tensor | None:
    """Which queries see no key at all, broadcastable to B x H x N; None where that cannot be.

    Kernels disagree on the log-sum-exp of such a row (the CPU's gives 0). It is read from the mask, which has no heads
    as a rule, so the keys are not passed over again.
    """
    if mask is None:
        return None
    seen = mask if mask.dtype is torch.bool else mask != HIDDEN
    if causal:
        seen = seen & below_diagonal(queries, keys, mask.device)
    return ~seen.any(-1)
