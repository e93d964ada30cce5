"""What a match is, once found: a place in the model where a tuner can go."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from fxtune.view import Tap

WeightLayout = Literal["out x in", "in x out", "convolution", "transposed", "other"]
"""How a weight is stored: that of a linear map, either way round; a convolution's (of kernel 1 too), or a transposed
one's, whose first axis is that of what it reads; or as the operator takes it, such as the factors of a norm."""


@dataclass(frozen=True)
class Port:
    """A value at the edge of a site.

    Attributes:
        value: id of the value in the view.
        taps: every place where it can be read; where it is computed first.
        shape: its sizes, symbolic ones as text.
        channel_axis: the axis of the channels, from the front.
        width: size of that axis.
        positions: product of the sizes of all axes but those of batch and channels, in the example.
    """

    value: int
    taps: tuple[Tap, ...]
    shape: tuple[str, ...]
    channel_axis: int
    width: int
    positions: int


@dataclass(frozen=True)
class Attention:
    """The attention inside an MHA: values as the attention core reads them, B x heads x N x head_dim or with batch and
    heads merged.

    Attributes:
        q: value id of the queries, scaled already where the model scales them.
        k: of the keys, after k-norm and rotary embedding.
        v: of the values.
        output: of the core's result, after layout.
        core: of the core's own result: of the fused operator, or of the product with the values.
        weights: of the softmax where it is written out, else None; likewise `product`, of queries and keys.
        whole: whether the unit is this attention with its projections, rather than something around it.
        q_proj: state_dict name of the query projection's weight (one name for all three where they are fused);
            likewise k_proj, v_proj, out_proj.
        heads: number of query heads.
        kv_heads: number of key and value heads before they are repeated.
        head_dim: width of a head.
        mask: value id of the mask or bias that is added to the logits, if any.
        causal: whether the fused operator masks causally.
        scale: factor on the logits where it stands beside the product; None for what the fused operator does by itself.
        context: value id of what keys and values are made from, as the unit's module is given it.
        cross: whether keys come from another value than queries.
    """

    q: int
    k: int
    v: int
    output: int
    core: int
    weights: int | None
    product: int | None
    whole: bool
    q_proj: str
    k_proj: str
    v_proj: str
    out_proj: str
    heads: int
    kv_heads: int
    head_dim: int
    mask: int | None
    causal: bool
    scale: float | None
    context: int
    cross: bool


@dataclass(frozen=True)
class Weights:
    """The tensors with which one operation computes, as the model stores them.

    Attributes:
        weight: state_dict name, or None where there is none.
        bias: likewise; None also where it is computed.
        layout: how the weight is stored.
        computed: of a bias that is computed (from the biases of queries, keys and values, say) the operator's argument
            that holds it; else None.
    """

    weight: str | None
    bias: str | None
    layout: WeightLayout
    computed: str | None = None


@dataclass(frozen=True)
class Convolution:
    """How a convolution goes over its map: one number for each axis of positions.

    Attributes:
        kernel: sides of the kernel.
        stride: steps.
        padding: zeros on either side, or `same` or `valid`.
        dilation: steps inside of the kernel.
        groups: g; each part of C/g channels gives D/g.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class Operation:
    """The one operation that a site is.

    Attributes:
        value: value id of its result in the view.
        op: its canonical name: linear, conv, layer_norm, ...
        weights: its own weights; None where it has none, or where its weight is computed, such as a part of a larger
            one, or a computed bias is more than a number a channel.
        convolution: how a convolution goes over its map, one of kernel 1 too, whose name is linear; else None.
        maps: what it itself reads, B x C x positions, and gives, B x D x positions.
    """

    value: int
    op: str
    weights: Weights | None
    convolution: Convolution | None = None
    maps: tuple[Port, Port] | None = None


@dataclass(frozen=True)
class Site:
    """One match of a pattern, or one operation inside of it.

    Attributes:
        kind: the pattern's name; of an operation inside of it `mha.q_proj`, and `mha.q_proj+k_proj` where one operation
            bears two of the names that were asked for.
        variant: the alternative that matched.
        index: number among the sites of its kind, in the order of computation.
        block: number of the Block that it lies in, or None.
        stage: number of that Block's stage (Blocks of one width and resolution in a row), or None.
        path: the innermost module that holds all of it.
        input: what the unit reads.
        output: what the unit gives.
        heads: an MHA's own; elsewhere those of the first MHA in the same Block, or 1.
        attention: for units with one attention in them.
        names: what each name of the pattern stands for: value ids.
        calls: how often its module is called in one forward.
        operation: for sites of one single operation.
    """

    kind: str
    variant: str
    index: int
    block: int | None
    stage: int | None
    path: str
    input: Port
    output: Port
    heads: int
    attention: Attention | None
    names: dict[str, int]
    calls: int = 1
    operation: Operation | None = None

    @property
    def label(self) -> str:
        """The kind as one component of a module path: ``mha_q_proj``."""
        return re.sub(r"\W", "_", self.kind)

    @property
    def width(self) -> int:
        """D: channels of the output."""
        return self.output.width

    def facts(self) -> dict[str, Any]:
        """What a rule's `where` can ask for."""
        return {
            "block": self.block,
            "stage": self.stage,
            "width": self.width,
            "path": self.path,
            "variant": self.variant,
        }


@dataclass(frozen=True)
class NearMiss:
    """A place where a pattern nearly matched: how many operations did, and where and why it failed."""

    kind: str
    matched: int
    place: str
    reason: str
    line: str

    def __str__(self) -> str:
        line = f", {self.line}" if self.line else ""
        return f"{self.place}: {self.reason} ({self.matched} operations matched{line})"
