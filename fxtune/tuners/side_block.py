"""``side_block``: a block of its own on a bypass, as in Ladder Side-Tuning (Sung et al., NeurIPS 2022)."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fxtune.tuners.placement import Placement
from fxtune.tuners.registry import tuner


@tuner("side_block")
class SideBlock(nn.Module):
    """A pre-norm block, ``z + attention(norm(z))``, then ``+ FFN(norm(·))``; it gives what it adds to z.

    On tokens positions are mixed by attention, under the mask of the unit beside it; on maps by a depthwise convolution
    of kernel 3 and a linear map. 4D² + 6D weights for the norms and the attention (D² + 15D with the convolution), and
    2rD² + rD + D + 2D for the FFN and its norm, r being `mlp_ratio`.

    Args:
        place: a level of a bypass; D is its width. There are as many heads as in the unit, as far as D divides into
            them.
        mlp_ratio: width of the FFN over D.
    """

    reads_mask: ClassVar[bool] = True

    def __init__(self, place: Placement, *, mlp_ratio: Annotated[int, Field(ge=1)] = 4) -> None:
        super().__init__()
        width = place.width
        self.heads, self.causal = math.gcd(place.heads, width), place.causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        if place.axes == 3:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.proj = nn.Linear(width, width)
        self.ffn = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens (B, N, D) to what the block adds to them, (B, N, D).

        Args:
            x: the tokens.
            mask: boolean, true where a key is seen, or added to the logits; (B, 1, N, N), or 1 for queries.
        """
        z = x.to(self.proj.weight.dtype)
        mixed = self.proj(self._attended(self.norm1(z), mask))
        return self._added(z, mixed).to(x.dtype)

    def on_map(self, x: Tensor) -> Tensor:
        """A map (B, D, H, W) to what the block adds to it."""
        z = x.to(self.proj.weight.dtype).movedim(1, -1)
        mixed = self.proj(self.conv(self.norm1(z).movedim(-1, 1)).movedim(1, -1))
        return self._added(z, mixed).movedim(-1, 1).to(x.dtype)

    def _attended(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if mask is not None and mask.is_floating_point():
            mask = mask.to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        return out.transpose(1, 2).flatten(2)

    def _added(self, z: Tensor, mixed: Tensor) -> Tensor:
        added: Tensor = mixed + self.ffn(self.norm2(z + mixed))
        return added
