"""Tokens from any layout, and back: tuners compute on B x N x D."""

from __future__ import annotations

import torch


def to_tokens(x: torch.Tensor, axis: int) -> torch.Tensor:
    """B x ... x D x ... with the channels on `axis` as tokens B x N x D; positions in the order in which they lie."""
    last = x.movedim(axis, -1)
    return last.reshape(last.shape[0], -1, last.shape[-1])


def from_tokens(tokens: torch.Tensor, like: torch.Tensor, axis: int) -> torch.Tensor:
    """Tokens B x N x D in the shape of `like`, which has its channels on `axis`."""
    shape = like.movedim(axis, -1).shape
    return tokens.reshape(shape).movedim(-1, axis)
