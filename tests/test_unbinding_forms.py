"""Original form against unbound form (res-tuning.md, section 2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import Phase, example, find, given, settings
from hypothesis.errors import NoSuchExample
from torch import Tensor

import unbinding_forms as forms
from effort import examples
from fxtune.testing import Case, Geometry, geometries
from fxtune.testing.geometries import rotated
from fxtune.unbinding import attention_with_lse, prefix_attention, unbound_attention
from unbinding_forms import EVERY_GEOMETRY, Count, gradients, relative

Form = Callable[[Case], tuple[Tensor, ...]]
METHODS: dict[str, tuple[Form, Callable[..., tuple[Tensor, ...]]]] = {
    "prefix": (forms.original_prefix, forms.unbound_prefix),
    "prompt": (forms.original_prompt, forms.unbound_prompt),
}
UNBOUND = {"fused": forms.fused, "composed": forms.composed}

EPS = torch.finfo(torch.float64).eps

CANCELS = Geometry(batch=1, kv_heads=1, groups=3, head_dim=2, queries=1, keys=1, prefix=1, mask="boolean", left=False,
                   dead_row=False, bias=False, rotary=False, qk_norm=True, cross=False, fused=False, scale=None,
                   magnitude=0.1, seed=4345)  # fmt: skip
"""What the one key gives and what the prefix gives are ten times their sum: each rounding counts tenfold."""


def slack(gradients: dict[str, Tensor]) -> float:
    """How far rounding alone can move a gradient. One that is truly zero (a key that is the only one has the weight 1
    whatever its logit is) is a sum of terms as large as the example's other gradients, which cancel."""
    return 64 * EPS * max(float(grad.detach().abs().max()) for grad in gradients.values() if grad.numel())


def disagreement(case: Case, original: Form, unbound: Form) -> str | None:
    """Where two forms differ by more than float64 allows at logits up to ten: 1e-12 in outputs, 1e-10 in gradients."""
    theirs, ours = original(case), unbound(case)
    for a, b in zip(ours, theirs, strict=True):
        if not relative(a, b) <= 1e-12:
            return f"outputs differ by {relative(a, b):.1e}"
    expected, found = gradients(theirs, case), gradients(ours, case)
    allowed = slack(expected)
    for name, b in expected.items():
        a = found.get(name, torch.zeros_like(b))
        if not (relative(a, b) <= 1e-10 or float((a - b).abs().max()) <= allowed):
            return f"gradients of {name} differ by {relative(a, b):.1e}"
    return None


@pytest.mark.parametrize("form", UNBOUND)
@pytest.mark.parametrize("method", METHODS)
def test_both_forms_agree_in_float64(method: str, form: str) -> None:
    count, worst = Count(), {"outputs": 0.0, "gradients": 0.0}
    original, unbound = METHODS[method]

    @EVERY_GEOMETRY
    @given(geometries(prefix=False))
    def agrees(geometry: Geometry) -> None:
        case = geometry.build()
        count.add(case)
        theirs, ours = original(case), unbound(case, UNBOUND[form])
        worst["outputs"] = max(worst["outputs"], *(relative(a, b) for a, b in zip(ours, theirs, strict=True)))
        expected, found = gradients(theirs, case), gradients(ours, case)
        for name, b in expected.items():
            if b.numel() and b.abs().max() > slack(expected) / 1e-10:
                worst["gradients"] = max(worst["gradients"], relative(found[name], b))
        differs = disagreement(case, original, lambda case: unbound(case, UNBOUND[form]))
        assert differs is None, differs

    agrees()
    print(method, form, {name: f"{value:.1e}" for name, value in worst.items()})
    count.check(examples(200, 5000))


@EVERY_GEOMETRY
@given(geometries())
def test_the_original_form_is_what_it_says(geometry: Geometry) -> None:
    """Against attention written out head by head."""
    case = geometry.build()
    assert disagreement(case, forms.written_out, forms.original_prefix) is None


@pytest.mark.parametrize("form", UNBOUND)
@pytest.mark.parametrize("method", METHODS)
def test_large_logits(method: str, form: str) -> None:
    """Everything is finite, and outputs are as near as the rounding of the logits allows."""
    worst: list[float] = [0.0]
    original, unbound = METHODS[method]

    @EVERY_GEOMETRY
    @given(geometries(largest=1e4, prefix=False))
    def agrees(geometry: Geometry) -> None:
        case = geometry.build()
        ours, theirs = unbound(case, UNBOUND[form]), original(case)
        assert all(out.isfinite().all() for out in ours)
        assert all(grad.isfinite().all() for grad in gradients(ours, case).values())
        bound = 16 * EPS * max(10.0, geometry.magnitude)
        for a, b in zip(ours, theirs, strict=True):
            worst[0] = max(worst[0], relative(a, b) / bound)
            assert relative(a, b) <= bound

    agrees()
    print(f"{method} {form}: at most {worst[0]:.2f} of the bound")


@pytest.mark.parametrize("largest", [10.0, 1e4])
@pytest.mark.parametrize("form", UNBOUND)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_low_precision_is_no_worse_than_the_original_form(dtype: torch.dtype, form: str, largest: float) -> None:
    """Against the float64 truth of the same rounded q, k, v and prefix."""
    squares: dict[str, list[float]] = {"original": [], "unbound": []}
    eps, beyond = torch.finfo(dtype).eps, [0.0]

    @EVERY_GEOMETRY
    @given(geometries(largest=largest, prefix=False))
    @example(CANCELS)
    def compare(geometry: Geometry) -> None:
        case = geometry.build()
        with torch.no_grad():
            read = [part.to(dtype) for part in (*case.attention(), *case.prefix())]
            mask = case.bias()
            mask = mask if mask is None or mask.dtype is torch.bool else mask.to(dtype)
            given = {"causal": geometry.causal, "scale": geometry.scale}
            wide = mask if mask is None or mask.dtype is torch.bool else mask.double()
            truth = prefix_attention(*(part.double() for part in read), mask=wide, **given)  # type: ignore[arg-type]
            original = relative(prefix_attention(*read, mask=mask, **given), truth)  # type: ignore[arg-type]
            unbound = relative(UNBOUND[form](*read, mask=mask, **given), truth)
        squares["original"].append(original**2)
        squares["unbound"].append(unbound**2)
        beyond[0] = max(beyond[0], (unbound - 2 * original) / eps)
        allowed = 2 * original + 4 * eps
        assert unbound <= allowed, f"{unbound / eps:.1f} eps against {original / eps:.1f} eps"

    compare()
    rms = {name: math.sqrt(sum(values) / len(values)) / eps for name, values in squares.items()}
    print(f"{dtype} {form} to {largest:g}: rms in eps {rms}, ratio {rms['unbound'] / rms['original']:.2f}, ", end="")
    print(f"worst beyond twice the original's {beyond[0]:.2f} eps")
    assert rms["unbound"] <= 2 * rms["original"]


# ---- the tests can fail ----------------------------------------------------------------------------------------------


# Each is a form of its own that takes its fault as a switch, so that without it the same form is shown to be right.


def _gated(case: Case, *, out_mask: bool = True, scale: float | None = None, share: bool = False, detach: bool = False,
           rotate: bool = False) -> tuple[Tensor, ...]:  # fmt: skip
    """The prefix by a λ that is put together here."""
    g, (q, k, v), (k_pre, v_pre) = case.geometry, case.attention(), case.prefix()
    if rotate and g.rotary:
        k_pre = rotated(k_pre)
    options = forms.options(case) | ({} if out_mask else {"mask": None, "causal": False})
    out, lse = attention_with_lse(q, k, v, **options)  # type: ignore[arg-type]
    prefix = (k_pre.expand(g.batch, -1, -1, -1), v_pre.expand(g.batch, -1, -1, -1))
    pre, _ = attention_with_lse(q, *prefix, scale=g.factor)
    _, lse_pre = attention_with_lse(q, *prefix, scale=scale or g.factor)
    lam = torch.sigmoid(lse_pre - (lse.detach() if detach else lse)).unsqueeze(-1)
    if share:
        lam = lam.mean(1, keepdim=True)
    return ((1 - lam) * out + lam * pre,)


def _prompted(case: Case, *, key_bias: bool = True, sign: int = 1) -> tuple[Tensor, ...]:
    """The prompts by a β that is put together here."""
    g, own, prompts = case.geometry, case.attention(), case.leaves["x_pro"].expand(case.geometry.batch, -1, -1)
    pro = case.project(prompts, prompts, prompts=g.prefix, key_bias=key_bias)
    x = forms.fused(*own, pro.k, pro.v, **forms.options(case))
    away, lse = attention_with_lse(pro.q, own.k, own.v, mask=case.bias_pro(), scale=g.scale)
    near, lse_pro = attention_with_lse(*pro, scale=g.scale)
    beta = torch.sigmoid(sign * (lse - lse_pro)).unsqueeze(-1)
    return x, (1 - beta) * near + beta * away


FAULTS = {
    "λ not scaled by 1/√d": ("prefix", partial(_gated, scale=1.0)),
    "mask forgotten": ("prefix", partial(_gated, out_mask=False)),
    "λ shared over heads": ("prefix", partial(_gated, share=True)),
    "λ without gradient": ("prefix", partial(_gated, detach=True)),
    "prefix keys rotated": ("prefix", partial(_gated, rotate=True)),
    "lost bias of W_k": ("prompt", partial(_prompted, key_bias=False)),
    "sign in β": ("prompt", partial(_prompted, sign=-1)),
}


@given(geometries())
@settings(max_examples=examples(100, 1000))
def test_without_their_faults_the_faulty_forms_are_right(geometry: Geometry) -> None:
    case = geometry.build()
    assert disagreement(case, forms.original_prefix, _gated) is None
    assert disagreement(case, forms.original_prompt, _prompted) is None


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str) -> None:
    method, broken = FAULTS[fault]
    original, _ = METHODS[method]

    def caught(geometry: Geometry) -> bool:
        return disagreement(geometry.build(), original, broken) is not None

    shrinking = settings(max_examples=200, phases=[Phase.generate, Phase.shrink], derandomize=True, database=None)
    try:
        print(fault, "is caught by", find(geometries(), caught, settings=shrinking))
    except NoSuchExample:
        pytest.fail(f"nothing catches: {fault}")


# ---- extremes --------------------------------------------------------------------------------------------------------

EXTREMES = {
    "fully masked row": Geometry(queries=3, keys=3, prefix=2, mask="boolean", dead_row=True, groups=2, bias=True),
    "fully masked row, additive": Geometry(queries=3, keys=3, prefix=2, mask="additive", dead_row=True),
    "sample of padding only": Geometry(batch=2, queries=4, keys=4, prefix=2, mask="padding", dead_row=True),
    "left padding, causal": Geometry(batch=2, queries=4, keys=4, prefix=2, mask="causal and padding", left=True),
    "one token": Geometry(prefix=3),
    "one token, one row": Geometry(),
    "prefix longer than the sequence": Geometry(queries=2, keys=2, prefix=11, groups=3),
    "long sequence": Geometry(queries=70, keys=1100, cross=True, prefix=3, head_dim=4),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("form", UNBOUND)
@pytest.mark.parametrize("extreme", EXTREMES)
def test_extremes(extreme: str, form: str, method: str) -> None:
    original, unbound = METHODS[method]
    case = EXTREMES[extreme].build()
    assert disagreement(case, original, lambda case: unbound(case, UNBOUND[form])) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("filling", [float("-inf"), "smallest"])
def test_a_row_that_sees_nothing_takes_the_prefix_alone(dtype: torch.dtype, filling: float | str) -> None:
    """λ = 1 exactly, no NaN in value or gradient; also where the mask holds the dtype's smallest number instead."""
    rng = torch.Generator().manual_seed(0)
    q, k, v, k_pre, v_pre = (torch.randn(1, 2, n, 4, generator=rng).to(dtype).requires_grad_() for n in (3, 3, 3, 2, 2))
    mask = torch.zeros(1, 1, 3, 3, dtype=dtype)
    mask[..., 1, :] = torch.finfo(dtype).min if filling == "smallest" else float("-inf")
    for masked in (mask, mask.clone().requires_grad_()):  # by a kernel, and written out
        mixed, lam = unbound_attention(q, k, v, k_pre, v_pre, mask=masked)
        assert (lam[..., 1] == 1).all()
        alone = attention_with_lse(q.double(), k_pre.double(), v_pre.double())[0]
        assert relative(mixed[..., 1, :], alone[..., 1, :]) <= 4 * torch.finfo(dtype).eps
        gradients = torch.autograd.grad(mixed.float().square().sum(), (q, k, v, k_pre, v_pre))
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("form", UNBOUND)
def test_no_prefix_is_bit_equal(form: str) -> None:
    q, k, v = (torch.randn(2, 3, 5, 4, requires_grad=True) for _ in range(3))
    empty = torch.zeros(1, 3, 0, 4, requires_grad=True)
    assert torch.equal(UNBOUND[form](q, k, v, empty, empty, scale=None), attention_with_lse(q, k, v)[0])
    assert (unbound_attention(q, k, v, empty, empty)[1] == 0).all()
