"""A training step of unbound against concatenated attention, at the sizes of ViT-B/16 with ten prefix tokens.

Only the attention is timed. Its bound is wider than that of a whole model, where projections and FFN are the same for
both forms: in float32, where the prefix's part is computed in float64, it has been 1.17 to 1.21 on one thread and 1.24
to 1.29 on two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fxtune.unbinding import prefix_attention, unbound_attention
from timing import paired

BATCH, HEADS, TOKENS, WIDTH, PREFIX = 8, 12, 197, 64, 10
AT_MOST = 1.4


def measure(rounds: int) -> Iterator[dict[str, Any]]:
    """One row a dtype and mask: seconds of both forms, and the ratio with its bound."""
    padding = torch.arange(TOKENS) < torch.linspace(100, TOKENS, BATCH).long()[:, None, None, None]
    for dtype in (torch.float32, torch.bfloat16):
        for what, mask in (("no mask", None), ("padding", padding)):
            original_s, unbound_s, ratio = paired(*steps(dtype, mask), 4 * rounds)
            yield {
                "what": f"attention, {str(dtype).removeprefix('torch.')}, {what}",
                "original_s": original_s,
                "unbound_s": unbound_s,
                "ratio": ratio,
                "ratio_at_most": AT_MOST,
            }


def steps(dtype: torch.dtype, mask: Tensor | None) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Forward and backward of each form, with gradients of everything."""
    made = torch.Generator().manual_seed(0)
    fused = torch.randn(BATCH, TOKENS, 3, HEADS, WIDTH, generator=made)  # as one projection gives q, k, v
    prefix = torch.randn(2, 1, HEADS, PREFIX, WIDTH, generator=made)
    rows = (*fused.permute(2, 0, 3, 1, 4).unbind(0), *prefix)
    leaves = [row.to(dtype).detach().requires_grad_() for row in rows]
    grad = torch.randn(BATCH, TOKENS, HEADS, WIDTH, generator=made).to(dtype).transpose(1, 2)
    return (
        lambda: torch.autograd.grad(prefix_attention(*leaves, mask=mask), leaves, grad),
        lambda: torch.autograd.grad(unbound_attention(*leaves, mask=mask)[0], leaves, grad),
    )
