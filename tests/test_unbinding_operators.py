"""The attention operators themselves: gradients, and the ways in which PyTorch runs them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from effort import examples
from fxtune.testing import Geometry, geometries
from fxtune.unbinding import attention, attention_with_lse, mix, prefix_attention, unbound_attention
from unbinding_forms import gradients, relative


def drawn(*, dtype: torch.dtype = torch.float64, batch: int = 2, prefix: int = 3, learned: int = 1) -> list[Tensor]:
    """q, k, v, k_pre, v_pre with grouped-query heads."""
    rng = torch.Generator().manual_seed(3)
    shapes = [(batch, 4, 5, 8), *[(batch, 2, 7, 8)] * 2, *[(learned, 2, prefix, 8)] * 2]
    return [torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def masks() -> Iterator[tuple[Tensor | None, bool]]:
    rng = torch.Generator().manual_seed(4)
    boolean = torch.rand(2, 1, 5, 7, generator=rng) < 0.6
    boolean[0, 0, 2] = False
    yield None, False
    yield None, True
    yield boolean, False
    yield boolean, True
    yield torch.randn(4, 5, 7, generator=rng, dtype=torch.float64), False
    yield torch.randn(7, generator=rng, dtype=torch.float64), True


@pytest.mark.parametrize(("mask", "causal"), list(masks()))
def test_gradients_are_those_of_the_values(mask: Tensor | None, causal: bool) -> None:
    """By finite differences, through the output and the log-sum-exp (of rows that see something)."""
    q, k, v, k_pre, v_pre = drawn()

    def both(*read: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = attention_with_lse(*read, mask=mask, causal=causal)
        return out, lse.masked_fill(lse.isinf(), 0.0)

    assert torch.autograd.gradcheck(both, (q, k, v))
    assert torch.autograd.gradcheck(
        lambda *read: unbound_attention(*read, mask=mask, causal=causal)[0], (q, k, v, k_pre, v_pre)
    )


@pytest.mark.parametrize("learned", [1, 2])
def test_a_prefix_may_differ_from_sample_to_sample(learned: int) -> None:
    read = drawn(learned=learned)
    assert torch.autograd.gradcheck(lambda *read: unbound_attention(*read)[0], read)
    assert torch.autograd.gradcheck(lambda *r: mix(*attention_with_lse(*r[:3]), r[0], *r[3:]), read)


@settings(max_examples=examples(100, 1000))
@given(geometries())
def test_kernel_and_plain_path_agree(geometry: Geometry) -> None:
    """Values and gradients, through both outputs."""
    case = geometry.build()
    results = []
    for plain in (False, True):
        read = case.attention()
        mask = case.bias()
        given = (mask if mask is None else attention.four_axes(mask).detach(), geometry.causal, geometry.factor)
        out, lse = attention._plain(*read, *given, 0.0) if plain else attention._attention(*read, *given)
        finite = lse.masked_fill(lse.isinf(), 0.0)
        results.append(((out, lse), gradients((out, finite), case)))
    (kernel, ours), (written, theirs) = results
    assert all(torch.equal(a.isinf(), b.isinf()) for a, b in zip(kernel, written, strict=True))
    (out, lse), (expected, expected_lse) = (
        [x.detach().nan_to_num(neginf=0.0) for x in pair] for pair in (kernel, written)
    )
    assert relative(out, expected) <= 1e-12
    # A product and a mask may cancel to a log-sum-exp near zero: what counts in a softmax is its error, not its share.
    torch.testing.assert_close(lse, expected_lse, rtol=1e-12, atol=1e-12)
    largest = max(float(grad.abs().max()) for grad in theirs.values())
    assert all(float((ours[name] - grad).abs().max()) <= 1e-12 * largest for name, grad in theirs.items())


def test_keys_that_the_model_has_repeated_itself() -> None:
    """The prefix keeps its kv-heads: transformers' models repeat keys before the operator, others leave it to it."""
    q, k, v, k_pre, v_pre = drawn()
    repeated = (k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1))
    expected = unbound_attention(q, k, v, k_pre, v_pre)[0]
    torch.testing.assert_close(unbound_attention(q, *repeated, k_pre, v_pre)[0], expected)
    torch.testing.assert_close(prefix_attention(q, *repeated, k_pre, v_pre), expected)


def test_a_learned_mask_gets_its_gradient() -> None:
    q, k, v, k_pre, v_pre = drawn()
    mask = torch.randn(1, 4, 5, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: attention_with_lse(q, k, v, mask=m), (mask,))
    assert torch.autograd.gradcheck(lambda m: unbound_attention(q, k, v, k_pre, v_pre, mask=m)[0], (mask,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    """The output has q's dtype, λ float32 at least, the log-sum-exp is as exact; the prefix's own may be wider."""
    q, k, v, k_pre, v_pre = drawn(dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    out, lse = attention_with_lse(q, k, v)
    mixed, lam = unbound_attention(q, k, v, k_pre.float(), v_pre.float())
    exact = torch.float64 if dtype is torch.float32 else wide
    assert (out.dtype, lse.dtype, mixed.dtype, lam.dtype) == (dtype, exact, dtype, wide)
    found = torch.autograd.grad(mixed.sum(), (q, k, v, k_pre, v_pre))
    assert all(grad.dtype == dtype for grad in found)


def test_no_keys_no_queries() -> None:
    for queries, keys in ((0, 3), (3, 0), (0, 0)):
        q, k = torch.randn(2, 2, queries, 4, requires_grad=True), torch.randn(2, 2, keys, 4, requires_grad=True)
        out, lse = attention_with_lse(q, k, k)
        assert out.shape == q.shape and (out == 0).all() and (lse == float("-inf")).all()
        mixed, lam = unbound_attention(q, k, k, *torch.randn(2, 1, 2, 3, 4))
        assert (lam == 1).all() and mixed.isfinite().all()
        torch.autograd.grad(mixed.sum(), (q, k))


def test_dropout_is_on_both_parts_and_not_in_the_gate() -> None:
    q, k, v, k_pre, v_pre = drawn()
    torch.manual_seed(0)
    runs = [unbound_attention(q, k, v, k_pre, v_pre, dropout_p=0.5) for _ in range(4000)]
    exact, lam = unbound_attention(q, k, v, k_pre, v_pre)
    assert all(torch.equal(run[1], runs[0][1]) for run in runs[:5])
    torch.testing.assert_close(runs[0][1], lam)
    mean = torch.stack([run[0].detach() for run in runs]).mean(0)
    torch.testing.assert_close(mean, exact, rtol=0, atol=0.12)  # four standard errors of the widest element
    for values in ((torch.zeros_like(v), v_pre), (v, torch.zeros_like(v_pre))):
        one, other = (unbound_attention(q, k, values[0], k_pre, values[1], dropout_p=0.5)[0] for _ in range(2))
        assert not torch.equal(one, other)


# ---- ways of running -------------------------------------------------------------------------------------------------


def step(q: Tensor, k: Tensor, v: Tensor, k_pre: Tensor, v_pre: Tensor) -> tuple[Tensor, Tensor]:
    """All there is, in one function: both operators, the parts, a mask that wants a gradient."""
    mixed, lam = unbound_attention(q, k, v, k_pre, v_pre, causal=True)
    again, _ = mix(*attention_with_lse(q, k, v, mask=torch.zeros_like(k[..., 0])[:, :1, None]), q, k_pre, v_pre)
    bias = (q[..., :1] + k[:, :1, :, 0].unsqueeze(-2)).to(q.dtype)
    plain, _ = unbound_attention(q, k, v, k_pre, v_pre, mask=bias)
    return mixed + again + plain, lam


def test_compiles_without_graph_breaks() -> None:
    """Also at a second batch size, without compiling a third time."""
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for batch in (2, 3):
        read = drawn(batch=batch, dtype=torch.float32)
        results = []
        for run in (step, compiled):
            mixed, lam = run(*read)
            results.append((mixed, lam, *torch.autograd.grad(mixed.square().sum(), read)))
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


class Net(torch.nn.Module):
    def forward(self, *read: Tensor) -> tuple[Tensor, Tensor]:
        return step(*read)  # type: ignore[arg-type]


@pytest.mark.parametrize("strict", [False, True])
def test_exports_and_still_has_its_gradients(strict: bool) -> None:
    """As operators of PyTorch's own, with the whole gradient, also through the log-sum-exp."""
    dim = torch.export.Dim("batch")
    read = tuple(drawn())
    shapes = ({0: dim}, {0: dim}, {0: dim}, None, None)
    program = torch.export.export(Net(), read, dynamic_shapes={"read": shapes}, strict=strict)
    assert "fxtune" not in str(program.graph)
    bigger = drawn(batch=3)
    results = []
    for run in (step, program.module()):
        mixed, lam = run(*bigger)
        results.append((mixed, lam, *torch.autograd.grad(mixed.square().sum(), bigger)))
    torch.testing.assert_close(results[1], results[0])


def test_autocast_casts_as_for_the_fused_operator() -> None:
    q, k, v, k_pre, v_pre = drawn(dtype=torch.float32)
    mask = torch.randn(5, 7)
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = attention_with_lse(q, k, v, mask=mask)
        mixed, lam = unbound_attention(q, k, v, k_pre, v_pre, mask=mask)
        again, _ = mix(out, lse, q.bfloat16(), k_pre, v_pre)
        theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    assert torch.equal(out, theirs)
    assert out.dtype == mixed.dtype == torch.bfloat16 and lse.dtype == lam.dtype == torch.float32
    torch.testing.assert_close(mixed, again)
    read = [x.bfloat16() for x in (q, k, v)]
    torch.testing.assert_close(mixed, unbound_attention(*read, k_pre, v_pre, mask=mask)[0])
    grads = torch.autograd.grad(mixed.float().square().sum(), (q, k, v, k_pre, v_pre))
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)


def test_meta_and_fake_tensors() -> None:
    real = step(*drawn())
    on_meta = step(*(x.to("meta") for x in drawn()))
    with FakeTensorMode() as mode:
        faked = step(*(mode.from_tensor(x.detach()) for x in drawn()))
    for a, b, c in zip(real, on_meta, faked, strict=True):
        assert a.shape == b.shape == c.shape and a.dtype == b.dtype == c.dtype


@pytest.mark.parametrize(("mask", "causal"), list(masks())[:4])
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the check looks at those of its own copies
@pytest.mark.parametrize("layout", ["contiguous", "as projected", "channels apart"])
def test_operators_do_as_they_declare(mask: Tensor | None, causal: bool, layout: str) -> None:
    """PyTorch's own check: schema, autograd, and the fake's strides against the real ones."""

    def laid(x: Tensor) -> Tensor:
        if layout == "as projected":
            x = x.detach().transpose(1, 2).contiguous().transpose(1, 2)
        if layout == "channels apart":
            x = x.detach().mT.contiguous().mT
        return x.detach().requires_grad_()

    read = [laid(x) for x in drawn(dtype=torch.float32)]
    ops = torch.ops.fxtune
    torch.library.opcheck(ops.attention_with_lse.default, (*read[:3], mask, causal, 0.3))
    torch.library.opcheck(ops.unbound_attention.default, (*read, mask, causal, 0.3))


def test_the_same_numbers_every_time() -> None:
    def run() -> list[Tensor]:
        read = drawn(dtype=torch.float32)
        mixed, lam = unbound_attention(*read)
        return [mixed, lam, *torch.autograd.grad(mixed.square().sum(), read)]

    torch.use_deterministic_algorithms(True)
    try:
        first, second = run(), run()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_under_checkpointing_and_without_gradients() -> None:
    read = drawn()
    direct = unbound_attention(*read)[0]
    recomputed = torch.utils.checkpoint.checkpoint(lambda *r: unbound_attention(*r)[0], *read, use_reentrant=False)
    for a, b in zip(
        torch.autograd.grad(direct.square().sum(), read),
        torch.autograd.grad(recomputed.square().sum(), read),
        strict=True,
    ):
        assert torch.equal(a, b)
    with torch.no_grad():
        assert torch.equal(unbound_attention(*read)[0], direct)
