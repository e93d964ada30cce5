"""Tokens or maps from any layout, and back: tuners compute on B x N x D, or on B x D x H x W."""

from __future__ import annotations

import torch


def to_tokens(x: torch.Tensor, axis: int) -> torch.Tensor:
    """B x ... x D x ... with the channels on `axis` as tokens B x N x D; positions in the order in which they lie."""
    last = x.movedim(axis, -1)
    return last.reshape(last.shape[0], -1, last.shape[-1])


def from_tokens(tokens: torch.Tensor, like: torch.Tensor, axis: int) -> torch.Tensor:
    """Tokens B x N x D in the layout of `like`, which has its channels on `axis`, and may have others."""
    shape = like.movedim(axis, -1).shape
    return tokens.reshape(*shape[:-1], tokens.shape[-1]).movedim(-1, axis)


def to_map(x: torch.Tensor, axis: int) -> torch.Tensor:
    """B x ... x D x ... with the channels on `axis` as a map B x D x ...."""
    return x.movedim(axis, 1)


def from_map(map: torch.Tensor, axis: int) -> torch.Tensor:
    """A map with its channels on `axis`."""
    return map.movedim(1, axis)


def size_note(map: torch.Tensor) -> torch.Tensor:
    """Height and width of a map B x D x h x w as those of an empty tensor, 0 x h x w, which holds no memory."""
    return map.new_empty((0, *map.shape[2:]))


def to_grid(tokens: torch.Tensor, prefix: int, sizes: tuple[int, int] | torch.Tensor) -> torch.Tensor:
    """Tokens B x N x D, of which h w behind the first `prefix` are positions, as the map B x D x h x w.

    The sizes are numbers, or a note of them.
    """
    height, width = sizes.shape[1:] if isinstance(sizes, torch.Tensor) else sizes
    rows = tokens.narrow(1, prefix, height * width).mT
    return rows.reshape(*rows.shape[:2], height, width)


def to_points(tokens: torch.Tensor, prefix: int, grid: torch.Tensor) -> torch.Tensor:
    """The other tokens, before the grid or, if prompts have joined them, behind, as maps of one position each."""
    behind = prefix + grid.shape[2] * grid.shape[3]
    others = torch.cat([tokens[:, :prefix], tokens[:, behind:]], 1)
    return others.flatten(0, 1)[:, :, None, None]


def from_grid(map: torch.Tensor, points: torch.Tensor, prefix: int, like: torch.Tensor) -> torch.Tensor:
    """The way back from both, to B x N x D as `like`."""
    rows = map.flatten(2).mT
    others = points.reshape(like.shape[0], like.shape[1] - rows.shape[1], like.shape[2])
    return torch.cat([others[:, :prefix], rows, others[:, prefix:]], 1)
