"""What a tuner may know of the place where it goes."""

from __future__ import annotations

from dataclasses import dataclass

from fxtune.matching import Convolution


@dataclass(frozen=True)
class Placement:
    """The site that a tuner is built for."""

    width: int
    """D: channels of the tokens that the tuner returns, and of those that it reads unless `width_in` says otherwise."""
    heads: int
    """Heads of the MHA itself, or of the MHA in the same block; 1 where there is none."""
    kind: str
    """The pattern that matched: mha, ffn, block, conv_mixer, or a user's own; mha.q_proj of an operation inside."""
    width_in: int = 0
    """Channels of the tokens that the tuner reads, or that its rows join. They differ from `width` only for a tuner
    class with `maps_widths = True`, and in cross-attention."""
    operation: str = ""
    """What the site is where it is one single operation: linear, conv, layer_norm, ...; else empty."""
    path: str = ""
    """Module path of the site, for errors."""
    kv_heads: int = 1
    """Key and value heads of the attention in which the tuner takes part, as its projections give them."""
    head_dim: int = 0
    """Width of one of them; 0 where the tuner takes part in no attention."""
    grid: tuple[int, ...] = ()
    """Height and width of the map whose positions the tokens are, in the example where images may be of any size; of a
    tuner on maps that reads tokens, and of one between two values of a bypass that reads a map."""
    prefix: int = 0
    """How many tokens stand before them: class, distillation, registers."""
    convolution: Convolution | None = None
    """Kernel, stride, padding, dilation and groups of the convolution whose map the tuner reads; else None."""
    axes: int = 3
    """Of what the tuner reads on a bypass, before it is laid as tokens: 3 of tokens, 4 of a map."""
    causal: bool = False
    """Whether the attention whose mask the tuner is given masks causally beside it."""
    pools: bool = False
    """Whether a tuner between two values of a bypass gives one position for all that it reads."""

    def __post_init__(self) -> None:
        if self.width_in == 0:
            object.__setattr__(self, "width_in", self.width)

    @property
    def mixed_width(self) -> int:
        """Channels of what a tuner changes: in a softmax those of all its heads, else D."""
        return self.heads * self.head_dim or self.width
