"""``side_network``: a small network beside the whole backbone, Side-Tuning (Zhang et al., ECCV 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fxtune.errors import RuleError
from fxtune.tuners.placement import Placement
from fxtune.tuners.registry import tuner
from fxtune.tuners.side_block import SideBlock

Layer = Literal["pool"] | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=4, max_length=4)]

PUBLISHED: tuple[Layer, ...] = (
    [64, 11, 4, 2], "pool", [192, 5, 1, 2], "pool", [384, 3, 1, 1], [256, 3, 1, 1], [256, 3, 1, 1], "pool",
)  # fmt: skip
"""The feature layers of AlexNet in one column (Krizhevsky, 2014), which the catalogue's side network has."""


@tuner("side_network")
class SideNetwork(nn.Module):
    """Images or tokens to final features, ``side(x)`` in ``λ base + (1 - λ) side(x)``; the mix is the bypass's.

    Of an image: convolutions with ReLU, averages over `positions` x `positions` places, and a linear map without bias.
    Of tokens: a linear map to `dim` channels, a `side_block` under the mask of the model's attention, the mean over the
    tokens that are seen (each token by itself where the features are one for each), and a linear map without bias.

    Args:
        place: a bypass `along: backbone`; it reads `width_in` channels, and D is the width of the features.
        layers: of the convolutions: [channels, kernel, stride, padding], or `pool`, a maximum over 3 x 3 places at each
            second one (none where fewer are left of a small image); the published ones when left out.
        positions: of an image, a side; the linear map reads positions² times the last layer's channels.
        dim: of tokens, the width of the block.

    Raises:
        RuleError: nothing is left of an image behind a layer.
    """

    reads_mask: ClassVar[bool] = True

    def __init__(
        self,
        place: Placement,
        *,
        layers: list[Layer] | None = None,
        positions: Annotated[int, Field(ge=1)] = 6,
        dim: Annotated[int, Field(ge=1)] = 64,
    ) -> None:
        super().__init__()
        self.pools = place.pools
        if place.axes == 4:
            chosen = PUBLISHED if layers is None else layers
            channels = [place.width_in, *(int(layer[0]) for layer in chosen if layer != "pool")]
            self.features = nn.Sequential(*_convolutions(place, chosen), nn.AdaptiveAvgPool2d(positions))
            self.up = nn.Linear(channels[-1] * positions**2, place.width, bias=False)
        else:
            self.down = nn.Linear(place.width_in, dim)
            self.block = SideBlock(replace(place, width=dim, width_in=dim))
            self.up = nn.Linear(dim, place.width, bias=False)

    def between(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """An image (B, C, H, W) or tokens (B, N, C) to features (B, 1, D), or (B, N, D).

        Args:
            x: the image, or the tokens.
            mask: of tokens, as of `side_block`.
        """
        z = x.to(self.up.weight.dtype)
        if z.dim() == 4:
            made: Tensor = self.up(self.features(z).flatten(1)[:, None])
            return made.to(x.dtype)
        z = self.down(z)
        z = z + self.block(z, mask)
        made = self.up(_mean(z, mask) if self.pools else z)
        return made.to(x.dtype)


def _mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Over the tokens that any query sees, B x 1 x D."""
    if mask is None:
        return tokens.mean(1, keepdim=True)
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    weights = seen.any(2).any(1).to(tokens.dtype)[:, None]
    weights = weights.expand(tokens.shape[0], -1, -1)
    return weights @ tokens / weights.sum(-1, keepdim=True).clamp(min=1)


def _convolutions(place: Placement, layers: Sequence[Layer]) -> Iterator[nn.Module]:
    """The layers for images of the example's size: a pool that less than 3 x 3 places come to is left out."""
    channels, sizes = place.width_in, place.grid
    for number, layer in enumerate(layers):
        if layer == "pool" and min(sizes) < 3:
            continue
        width, kernel, stride, padding = (channels, 3, 2, 0) if layer == "pool" else (int(part) for part in layer)
        sizes = tuple((size + 2 * padding - kernel) // stride + 1 for size in sizes)
        if min(sizes) < 1:
            raise RuleError(
                "The tuner 'side_network' has too many layers for these images",
                found=f"images of {' x '.join(map(str, place.grid))}, of which layer {number}, {layer}, leaves nothing",
                fix="give it fewer or smaller ones: layers=[[channels, kernel, stride, padding], 'pool', ...]",
            )
        if layer == "pool":
            yield nn.MaxPool2d(kernel, stride)
        else:
            yield nn.Conv2d(channels, width, kernel, stride, padding)
            yield nn.ReLU()
        channels = width
