"""Attention geometries for property tests: a strategy that draws them, and the tensors that they stand for.

    @given(geometries())
    def test_my_form_agrees(geometry):
        case = geometry.build()
        assert_close(mine(*case.attention()), theirs(*case.attention()))

A geometry is small plain data; a failing one is printed by what it has beyond the simplest, and can be pasted back.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

MaskKind = Literal["none", "additive", "boolean", "padding", "causal", "causal and padding"]

FEATURES = (
    "additive mask",
    "boolean mask",
    "padding mask",
    "causal",
    "cross-attention",
    "grouped-query heads",
    "relative bias",
    "rotary",
    "qk-norm",
    "separate projections",
    "fused projections",
)
"""What the attention of real models has; each is in at least a tenth of the examples."""


@dataclass(frozen=True, repr=False)
class Geometry:
    """One attention with a prefix.

    Attributes:
        batch: samples.
        kv_heads: key and value heads.
        groups: query heads for each of them.
        head_dim: d, even.
        queries: N.
        keys: S; N in self-attention.
        prefix: P.
        mask: what hides keys; an additive one also has values of its own.
        left: whether a padding mask hides the first keys instead of the last; beside a causal one the first queries
            then see no key.
        dead_row: whether one query sees no key (a whole sample under a padding mask).
        bias: a learned relative bias on the logits.
        rotary: whether queries and keys are rotated.
        qk_norm: whether they are normalised first.
        cross: whether keys come from a context.
        fused: whether projections are one matrix (of keys and values, in cross-attention).
        scale: factor on the logits; 1/√d where None.
        magnitude: largest logit, bias included, without mask.
        seed: of the numbers.
    """

    batch: int = 1
    kv_heads: int = 1
    groups: int = 1
    head_dim: int = 2
    queries: int = 1
    keys: int = 1
    prefix: int = 1
    mask: MaskKind = "none"
    left: bool = False
    dead_row: bool = False
    bias: bool = False
    rotary: bool = False
    qk_norm: bool = False
    cross: bool = False
    fused: bool = False
    scale: float | None = None
    magnitude: float = 1.0
    seed: int = 0

    def __repr__(self) -> str:
        given = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default)
        return f"Geometry({', '.join(given)})"

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kv_heads * self.groups

    @property
    def causal(self) -> bool:
        """Whether the fused operator is to mask causally."""
        return self.mask.startswith("causal")

    @property
    def factor(self) -> float:
        """What the logits are multiplied with."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    def features(self) -> set[str]:
        """Which of `FEATURES` it has, and which extremes."""
        has = {
            "additive mask": self.mask == "additive",
            "boolean mask": self.mask == "boolean",
            "padding mask": self.mask.endswith("padding"),
            "causal": self.causal,
            "cross-attention": self.cross,
            "grouped-query heads": self.groups > 1,
            "relative bias": self.bias,
            "rotary": self.rotary,
            "qk-norm": self.qk_norm,
            "separate projections": not self.fused,
            "fused projections": self.fused,
            "fully masked row": self.dead_row,
            "one token": self.queries == 1,
            "one head": self.heads == 1,
            "prefix longer than the sequence": self.prefix > self.keys,
            "P = 0": self.prefix == 0,
        }
        return {name for name, there in has.items() if there}

    def build(self, dtype: torch.dtype = torch.float64) -> Case:
        """Its tensors: drawn in float64 from `seed`, then rounded."""
        case = _draw(self)
        case = _amplified(case)
        rounded = {name: leaf.to(dtype).requires_grad_() for name, leaf in case.leaves.items()}
        return Case(
            self, rounded, case.mask if case.mask is None or case.mask.dtype is torch.bool else case.mask.to(dtype)
        )


class Inputs(NamedTuple):
    """What an attention core reads."""

    q: Tensor
    k: Tensor
    v: Tensor


@dataclass
class Case:
    """The tensors of a geometry.

    Attributes:
        geometry: what it is.
        leaves: the inputs, weights and learned rows, all of which want gradients.
        mask: the mask without the bias.
    """

    geometry: Geometry
    leaves: dict[str, Tensor]
    mask: Tensor | None = field(default=None)

    def project(self, x: Tensor, context: Tensor, *, prompts: int = 0, key_bias: bool = True) -> Inputs:
        """x (B x N x D) and context (B x S x D) through the projections, qk-norm and rotary embedding.

        Args:
            x: what queries are made from.
            context: what keys and values are made from.
            prompts: how many of the last rows of both are prompts, which are not rotated.
            key_bias: False plants a fault: keys without the bias of their projection.
        """
        g, leaves = self.geometry, self.leaves
        wq, wk, wv = torch.split(leaves["w"], [g.heads * g.head_dim, *[g.kv_heads * g.head_dim] * 2])
        bq, bk, bv = torch.split(leaves["b"], [len(wq), len(wk), len(wv)])
        if g.fused and not g.cross and x is context:
            q, k, v = torch.split(F.linear(x, leaves["w"], leaves["b"]), [len(wq), len(wk), len(wv)], dim=-1)
        elif g.fused:
            q = F.linear(x, wq, bq)
            both = F.linear(context, torch.cat([wk, wv]), torch.cat([bk, bv]))
            k, v = torch.split(both, [len(wk), len(wv)], dim=-1)
        else:
            q, k, v = F.linear(x, wq, bq), F.linear(context, wk, bk), F.linear(context, wv, bv)
        if not key_bias:
            k = k - bk
        q, k, v = (_split(rows, g.head_dim) for rows in (q, k, v))
        if g.qk_norm:
            q, k = (_normed(rows, leaves[name]) for rows, name in ((q, "q_norm"), (k, "k_norm")))
        if g.rotary:
            q, k = (
                torch.cat([rotated(r[:, :, : r.shape[2] - prompts]), r[:, :, r.shape[2] - prompts :]], 2)
                for r in (q, k)
            )
        return Inputs(q, k, v)

    def attention(self) -> Inputs:
        """q, k and v of the model's own tokens."""
        return self.project(self.leaves["x"], self.context)

    def prompts(self) -> Inputs:
        """q, k and v of the prompt rows: through the same projections and norms, not rotated; 1 x H x P x d."""
        return self.project(self.leaves["x_pro"], self.leaves["x_pro"], prompts=self.geometry.prefix)

    def prefix(self) -> tuple[Tensor, Tensor]:
        """Keys and values of the prefix; 1 x Hkv x P x d."""
        return _split(self.leaves["k_pre"], self.geometry.head_dim), _split(
            self.leaves["v_pre"], self.geometry.head_dim
        )

    @property
    def context(self) -> Tensor:
        """Where the keys come from."""
        return self.leaves["context"] if self.geometry.cross else self.leaves["x"]

    def bias(self) -> Tensor | None:
        """Mask and relative bias in one, as the attention operator takes them."""
        if not self.geometry.bias:
            return self.mask
        bias = self.leaves["bias"]
        if self.mask is None:
            return bias
        return bias.masked_fill(~self.mask, float("-inf")) if self.mask.dtype is torch.bool else bias + self.mask

    def bias_pro(self) -> Tensor | None:
        """The mask of the prompt rows: they see what a padding mask leaves, without bias."""
        return self.mask if self.mask is not None and self.geometry.mask.endswith("padding") else None


def geometries(*, largest: float = 10.0, prefix: bool = True) -> st.SearchStrategy[Geometry]:
    """A strategy for geometries.

    Args:
        largest: bound of the largest logit, bias included.
        prefix: whether there is at least one learned row.
    """
    return _geometries(largest, 1 if prefix else 0)


@st.composite
def _geometries(draw: st.DrawFn, largest: float, shortest: int) -> Geometry:
    kind: MaskKind = draw(st.sampled_from(("none", "additive", "boolean", "padding", "causal", "causal and padding")))
    cross = draw(st.booleans())
    queries = draw(st.one_of(st.integers(1, 9), st.sampled_from((1, 33, 65))))
    keys = draw(st.one_of(st.integers(1, 9), st.sampled_from((1, 40)))) if cross else queries
    return Geometry(
        batch=draw(st.integers(1, 3)),
        kv_heads=draw(st.integers(1, 3)),
        groups=draw(st.sampled_from((1, 2, 3))),
        head_dim=draw(st.sampled_from((2, 4, 6, 8, 16))),
        queries=queries,
        keys=keys,
        prefix=draw(st.one_of(st.integers(shortest, 4), st.integers(max(shortest, 5), 14))),
        mask=kind,
        left=kind.endswith("padding") and draw(st.booleans()),
        dead_row=kind in ("additive", "boolean", "padding") and draw(st.booleans()),
        bias=draw(st.booleans()),
        rotary=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        cross=cross,
        fused=draw(st.booleans()),
        scale=draw(st.sampled_from((None, None, 1.0, 0.3))),
        magnitude=draw(st.sampled_from([m for m in (1.0, 0.1, 10.0, 100.0, 1e3, 1e4) if m <= largest])),
        seed=draw(st.integers(0, 2**16)),
    )


# ---- numbers ---------------------------------------------------------------------------------------------------------


def _draw(g: Geometry) -> Case:
    rng = torch.Generator().manual_seed(g.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    width = g.heads * g.head_dim
    rows = width + 2 * g.kv_heads * g.head_dim
    leaves = {
        "x": normal(g.batch, g.queries, width),
        "x_pro": normal(1, g.prefix, width),
        "k_pre": normal(1, g.prefix, g.kv_heads * g.head_dim),
        "v_pre": normal(1, g.prefix, g.kv_heads * g.head_dim),
        "w": normal(rows, width) * width**-0.5,
        "b": normal(rows),
    }
    if g.cross:
        leaves["context"] = normal(g.batch, g.keys, width)
    if g.qk_norm:
        leaves |= {"q_norm": normal(g.head_dim), "k_norm": normal(g.head_dim)}
    if g.bias:
        bias = normal(1, g.heads, g.queries, g.keys)
        leaves["bias"] = bias / bias.abs().max() * 0.3 * g.magnitude
    return Case(g, leaves, _mask(g, rng))


def _mask(g: Geometry, rng: torch.Generator) -> Tensor | None:
    if g.mask.endswith("padding"):
        lengths = torch.randint(1, g.keys + 1, (g.batch, 1, 1, 1), generator=rng)
        lengths[0] = 0 if g.dead_row else lengths[0]
        visible = torch.arange(g.keys) < lengths
        return visible.flip(-1) if g.left else visible
    if g.mask not in ("additive", "boolean"):
        return None
    heads = 1 if g.seed % 2 else g.heads
    visible = torch.rand(g.batch, heads, g.queries, g.keys, generator=rng) < 0.7
    visible[..., 0] = True
    if g.dead_row:
        visible[:, :, g.queries // 2] = False
    if g.mask == "boolean":
        return visible
    values = torch.randn(visible.shape, generator=rng, dtype=torch.float64)
    return (values / values.abs().max() * 0.2 * g.magnitude).masked_fill(~visible, float("-inf"))


@torch.no_grad()
def _amplified(case: Case) -> Case:
    """Queries stretched until the largest logit, over keys, prefix and prompts, is the geometry's magnitude."""
    g = case.geometry
    own, pro = case.attention(), case.prompts()
    keys = [own.k, *(x.expand(g.batch, -1, -1, -1) for x in (pro.k, case.prefix()[0]))]
    queries = [own.q, pro.q.expand(g.batch, -1, -1, -1)]
    every = [(q @ torch.cat(keys, 2).repeat_interleave(g.groups, 1).mT * g.factor).abs().flatten() for q in queries]
    stretch = (0.5 if g.bias or g.mask == "additive" else 1.0) * g.magnitude / float(torch.cat(every).max())
    leaves = dict(case.leaves)
    if g.qk_norm:
        leaves["q_norm"] = leaves["q_norm"] * stretch
    else:
        width = g.heads * g.head_dim
        for name in ("w", "b"):
            leaves[name] = leaves[name].clone()
            leaves[name][:width] *= stretch
    return Case(g, leaves, case.mask)


def _split(rows: Tensor, head_dim: int) -> Tensor:
    return torch.unflatten(rows, -1, (-1, head_dim)).transpose(1, 2)


def _normed(rows: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(rows, (rows.shape[-1],), eps=1e-6) * weight


def rotated(rows: Tensor) -> Tensor:
    """Rotary position embedding of B x H x N x d at the positions 1 to N."""
    half = rows.shape[-1] // 2
    position = torch.arange(1, rows.shape[2] + 1, dtype=torch.float64)
    angles = torch.outer(position, 100.0 ** (-torch.arange(half, dtype=torch.float64) / half))
    cos, sin = (part.to(rows.dtype) for part in (angles.cos(), angles.sin()))
    a, b = rows[..., :half], rows[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
