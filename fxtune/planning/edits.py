"""The ways in which a tuner changes a graph. Each names fx nodes of one region and the tuner's method that it calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fxtune.matching import WeightLayout
from fxtune.view import Tap


@dataclass(frozen=True)
class Value:
    """A value of a region.

    Attributes:
        node: fx node of the region that holds it.
        axis: its channel axis.
        rank: its number of axes.
        copied: whether a later in-place operation overwrites it, so that a copy must be taken when it is computed.
    """

    node: str
    axis: int
    rank: int
    copied: bool = False


@dataclass(frozen=True)
class Note:
    """How the sizes of a map come to where they are read.

    Attributes:
        tap: where the map stands.
        out: the calls by which regions hand them out: each the calling region and the fx node of the call.
        into: the calls by which regions then take them in, likewise.
    """

    tap: Tap
    out: tuple[Tap, ...]
    into: tuple[Tap, ...]


@dataclass(frozen=True)
class OnGrid:
    """Tokens that are the positions of a map, behind others.

    Attributes:
        prefix: how many others.
        sizes: height and width of the map; a note of them where they change with the image.
    """

    prefix: int
    sizes: tuple[int, int] | Note


@dataclass(frozen=True)
class Beside:
    """``output + tuner(source)`` (Res-Tuning, Eq. 7).

    Attributes:
        source: what the tuner reads.
        output: what its result is added to.
        method: the tuner's method: `forward`, on tokens, or `on_map`.
        grid: the map in the tokens, for `on_map` where they are read; None where maps are.
    """

    source: Value
    output: Value
    method: str = "forward"
    grid: OnGrid | None = None

    def told(self, tuner: str) -> str:
        """The edit in a line."""
        copied = ", copied before it is overwritten" if self.source.copied else ""
        return f"{self.output.node} += {tuner}({self.source.node}{copied})"


@dataclass(frozen=True)
class After:
    """``tuner(output)``: a layer of its own behind the operation (Eq. 6, the original form)."""

    output: Value

    method: ClassVar[str] = "in_sequence"

    def told(self, tuner: str) -> str:
        """The edit in a line."""
        return f"{self.output.node} = {tuner}({self.output.node})"


@dataclass(frozen=True)
class InWeights:
    """The operation computes with ``tuner(weight, bias)``: the original form of what changes weights.

    Attributes:
        node: fx node of the operation.
        weight: name of its weight from the region on; None where it has none, likewise `bias`.
        bias: likewise.
        layout: how the model stores the weight.
        computed: the operator's argument that holds a bias which is computed; else None.
    """

    node: str
    weight: str | None
    bias: str | None
    layout: WeightLayout
    computed: str | None = None

    method: ClassVar[str] = "in_weights"

    def told(self, tuner: str) -> str:
        """The edit in a line."""
        bias = self.bias if self.computed is None else "computed bias"
        return f"{self.node} computes with {tuner}({self.weight}, {bias})"


@dataclass(frozen=True)
class Bias:
    """What is added to attention logits.

    Attributes:
        node: fx node.
        factor: what it is multiplied with.
        groups: G where the model adds it to logits whose samples it has parted, B/G x G x H x N x S (windows of an
            image, say); else None.
    """

    node: str
    factor: float = 1.0
    groups: int | None = None


@dataclass(frozen=True)
class Core:
    """``tuner(q, k, v, mask)`` in the place of ``softmax(q kᵀ · scale + mask) v``.

    Attributes:
        node: the fused operator, or the product with the values.
        product: the product of queries and keys where it is written out (its keys are then head_dim x S), else None.
        biases: what is added to the logits where they are written out.
        scale: factor on the logits; None for 1/√head_dim.
        dropout: probability that a weight is dropped in training mode.
        method: the tuner's method: `attend` or `attend_original`.
    """

    node: str
    product: str | None
    biases: tuple[Bias, ...]
    scale: float | None
    dropout: float
    method: str

    def told(self, tuner: str) -> str:
        """The edit in a line."""
        return f"{self.node} = {tuner} in the softmax, {'unbound' if self.method == 'attend' else 'original form'}"


@dataclass(frozen=True)
class Join:
    """Where prompt rows join a sequence B x N x D: behind its last token.

    Attributes:
        region: module path of the region.
        node: the fx node that holds the sequence.
        readers: the fx nodes that read it with the rows.
    """

    region: str
    node: str
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Resize:
    """Sizes that are written down for N tokens, and must fit more.

    Attributes:
        region: module path of the region.
        node: fx node of the operator.
        position: of the sizes among its arguments.
        changed: place in the sizes -> new size.
        value: id of the value in the view.
    """

    region: str
    node: str
    position: int
    changed: Mapping[int, int]
    value: int


@dataclass(frozen=True)
class Bypass:
    """Operations that treat tokens by position (rotary embedding, say): rows leave before and join again behind.

    Attributes:
        region: module path of the region.
        entry: fx node of the value before.
        exit: fx node of the value behind, of the same shape.
        axis: their token axis.
        readers: fx nodes that read the entry without rows.
        inside: ids of the values from behind the entry to the exit.
        first: id of the entry.
        last: id of the exit.
    """

    region: str
    entry: str
    exit: str
    axis: int
    readers: tuple[str, ...]
    inside: frozenset[int]
    first: int
    last: int


@dataclass(frozen=True)
class Aside:
    """Readers of a value with rows at the end of `axis` that are to read it without."""

    region: str
    node: str
    axis: int
    readers: tuple[str, ...]


@dataclass(frozen=True)
class MaskRows:
    """A mask, or bias, of an attention whose queries have rows and whose keys have none: it gets rows, too.

    Attributes:
        region: module path of the region.
        core: fx node of the attention.
        node: fx node of the mask.
        readers: the fx nodes that add it to the logits.
    """

    region: str
    core: str
    node: str
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Cut:
    """Where prompt rows are thrown away: the fx node of a sequence with rows at the end of `axis`."""

    region: str
    node: str
    axis: int


@dataclass(frozen=True)
class Prompted:
    """The tuner's prompts as rows of the sequence, from where they join to an attention's core or to `cut`.

    In the unbound form the core's operands bring the rows and its result has none, unless they go on to further cores;
    in the original form they go on to `cut`.

    Attributes:
        join: where they join.
        cores: the attentions that they take part in, each with its region.
        query_rows: whether the queries have the rows too (not in cross-attention, where the context has them).
        resized: what must fit more tokens.
        bypasses: what they go around.
        asides: who reads what they are in, off their way.
        masks: what is added to the logits of further attentions, through which they go as queries alone.
        cut: where they leave, None where that is the core.
        stays: whether they go through attentions in regions that the tuner itself is not in.
    """

    join: Join
    cores: tuple[tuple[str, Core], ...]
    query_rows: bool
    resized: tuple[Resize, ...]
    bypasses: tuple[Bypass, ...]
    asides: tuple[Aside, ...]
    masks: tuple[MaskRows, ...]
    cut: Cut | None
    stays: bool = False

    @property
    def method(self) -> str:
        """The tuner's method."""
        return self.cores[0][1].method

    @property
    def counted(self) -> bool:
        """Whether the graph writes down how many rows there are; else it takes as many as the prompts have."""
        return bool(self.bypasses or self.asides or self.masks or self.cut or self.stays)

    def told(self, tuner: str) -> str:
        """The edit in a line."""
        until = f", cut behind {self.cut.node}" if self.cut else ""
        cores = "; ".join(core.told(tuner) for _, core in self.cores)
        return f"rows of {tuner} behind {self.join.node}{until}; {cores}"


Edit = Beside | After | InWeights | Core | Prompted
