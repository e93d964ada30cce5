"""What a tuner may know of the place where it goes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """The site that a tuner is built for."""

    width: int
    """D: channels of the tokens that the tuner reads and returns."""
    heads: int
    """Heads of the MHA itself, or of the MHA in the same block; 1 where there is none."""
    kind: str
    """The pattern that matched: mha, ffn, block, conv_mixer, or a user's own."""
    kv_heads: int = 1
    """Key and value heads of the attention, as its projections give them."""
    head_dim: int = 0
    """Width of one of them; 0 where there is no attention."""
