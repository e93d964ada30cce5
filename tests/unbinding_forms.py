"""The forms under test, a reference that shares nothing with them, and what they must agree in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from hypothesis import settings
from torch import Tensor

from effort import examples
from fxtune.testing import FEATURES, Case
from fxtune.unbinding import attention_with_lse, mix, prefix_attention, prompt_attention, unbound_attention

EVERY_GEOMETRY = settings(max_examples=examples(200, 5000))

Unbound = Callable[..., Tensor]


def fused(q: Tensor, k: Tensor, v: Tensor, k_pre: Tensor, v_pre: Tensor, **options: object) -> Tensor:
    """The unbound form in one operator."""
    return unbound_attention(q, k, v, k_pre, v_pre, **options)[0]  # type: ignore[arg-type]


def composed(q: Tensor, k: Tensor, v: Tensor, k_pre: Tensor, v_pre: Tensor, **options: object) -> Tensor:
    """The unbound form from its parts, with gradients through the log-sum-exp."""
    out, lse = attention_with_lse(q, k, v, **options)  # type: ignore[arg-type]
    return mix(out, lse, q, k_pre, v_pre, scale=options["scale"])[0]  # type: ignore[arg-type]


def options(case: Case) -> dict[str, object]:
    g = case.geometry
    return {"mask": case.bias(), "causal": g.causal, "scale": g.scale}


def original_prefix(case: Case) -> tuple[Tensor, ...]:
    return (prefix_attention(*case.attention(), *case.prefix(), **options(case)),)  # type: ignore[arg-type]


def unbound_prefix(case: Case, form: Unbound = fused) -> tuple[Tensor, ...]:
    return (form(*case.attention(), *case.prefix(), **options(case)),)


def with_rows(case: Case) -> tuple[Tensor, ...]:
    """q, k, v with prompt rows in the sequence: one projection for all rows of x, or of the context."""
    g = case.geometry
    prompts = case.leaves["x_pro"].expand(g.batch, -1, -1)
    rows = torch.cat([case.leaves["x"], prompts], dim=1)
    context = torch.cat([case.context, prompts], dim=1) if g.cross else rows
    return case.project(rows, context, prompts=g.prefix)


def original_prompt(case: Case, **changes: object) -> tuple[Tensor, ...]:
    """The prompts given apart from the other rows."""
    p = case.geometry.prefix
    (q, q_pro), (k, k_pro), (v, v_pro) = (part.split([part.shape[2] - p, p], dim=2) for part in with_rows(case))
    given = {"mask_pro": case.bias_pro(), **options(case), **changes}
    return prompt_attention(q, k, v, q_pro, k_pro, v_pro, **given)  # type: ignore[arg-type]


def unbound_prompt(case: Case, form: Unbound = fused) -> tuple[Tensor, ...]:
    own, pro = case.attention(), case.prompts()
    x = form(*own, pro.k, pro.v, **options(case))
    queries = pro.q.expand(case.geometry.batch, -1, -1, -1)
    d = form(queries, own.k, own.v, pro.k, pro.v, mask=case.bias_pro(), causal=False, scale=case.geometry.scale)
    return x, d


def written_out(case: Case) -> tuple[Tensor, ...]:
    """Attention over prefix and keys, key by key in plain softmax: shares no code with either form."""
    g = case.geometry
    q, k, v = case.attention()
    k_pre, v_pre = case.prefix()
    rows = []
    for head in range(g.heads):
        group = head // g.groups
        own = torch.einsum("bnd,bsd->bns", q[:, head], k[:, group]) * g.factor
        learned = torch.einsum("bnd,pd->bnp", q[:, head], k_pre[0, group]) * g.factor
        if g.causal:
            own = own + torch.full_like(own, float("-inf")).triu(1)
        if (bias := case.bias()) is not None:
            bias = bias.expand(g.batch, g.heads, g.queries, g.keys)[:, head]
            own = own.masked_fill(~bias, float("-inf")) if bias.dtype is torch.bool else own + bias
        weights = torch.softmax(torch.cat([learned, own], -1), -1)
        values = torch.cat([v_pre[:, group].expand(g.batch, -1, -1), v[:, group]], 1)
        rows.append(weights @ values)
    return (torch.stack(rows, 1),)


def gradients(outputs: tuple[Tensor, ...], case: Case) -> dict[str, Tensor]:
    """Of every leaf that the outputs depend on, for fixed random gradients of the outputs."""
    rng = torch.Generator().manual_seed(1)
    grads = [torch.randn(out.shape, generator=rng, dtype=torch.float64).to(out.dtype) for out in outputs]
    found = torch.autograd.grad(outputs, list(case.leaves.values()), grads, allow_unused=True)
    return {name: grad for name, grad in zip(case.leaves, found, strict=True) if grad is not None}


def relative(a: Tensor, b: Tensor) -> float:
    """``max|a - b| / max|b|``; 0 where both are zero."""
    if b.numel() == 0 or torch.equal(a, b):
        return 0.0
    error = float((a.detach().double() - b.detach().double()).abs().max() / b.detach().double().abs().max())
    return error if error == error else float("inf")


class Count:
    """How many examples had each feature."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.examples = 0

    def add(self, case: Case) -> None:
        self.examples += 1
        self.seen.update(case.geometry.features())

    def check(self, least: int) -> None:
        """Prints the table; at least `least` examples, and each feature in a tenth of them."""
        print(f"{self.examples} examples")
        for name, times in self.seen.most_common():
            print(f"  {name:34}{times:6} {times / self.examples:6.1%}")
        rare = [name for name in FEATURES if self.seen[name] < self.examples / 10]
        assert self.examples >= least and not rare, f"{self.examples} examples, too few with: {rare}"
