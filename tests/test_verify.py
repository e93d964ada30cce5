"""`fxtune.verify`: it passes what agrees, catches what doesn't, makes that small, and writes it down."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

import families
import fxtune
from fxtune import cli
from fxtune.testing import assert_equivalent
from fxtune.tuners import registry
from fxtune.unbinding import prefix_attention, unbound_attention
from fxtune.verifying import Agreement, Breach, Example
from fxtune.verifying.comparing import Measured, measure
from fxtune.verifying.inputs import Inputs
from fxtune.verifying.shrinking import smallest
from fxtune.verifying.weights import drawn_weights, representable

Rules = str | dict[str, Any]


def rule(at: str, insert: Any, **more: Any) -> dict[str, Any]:
    return {"name": "tested", "rules": [{"at": at, "insert": insert, **more}]}


RULES: dict[str, Rules] = {
    "prefix": rule("mha", {"res_prefix": {"tokens": 3, "scale": "channel"}}),
    "prompt": rule("mha", {"res_prompt": {"tokens": 3}}),
    "vpt": rule("block", {"vpt": {"tokens": 3}}),
    "adapter": "adapter",
    "lora": "lora",
    "bitfit": "bitfit",
}


def vit(depth: int = 1) -> nn.Module:
    return VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=depth, num_heads=2, num_classes=3, init_values=1e-5, qk_norm=True
    )


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    return transformers.BertModel(config, add_pooling_layer=False)


def unet() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=12,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": vit,
    "deep vit": lambda: vit(2),
    "bert": bert,
    "unet": unet,
    "convnext": lambda: ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 6, 8, 10), num_classes=3, ls_init_value=1e-6),
    "resnet": families.FAMILIES["resnet"].build,
}
INPUTS = {"convnext": families.images(2, 64), "resnet": families.images(2)}


@functools.cache
def model(family: str) -> nn.Module:
    """In training mode, as libraries build models; with their zero biases."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[family]()


def verified(family: str, rules: Rules, examples: Any = 3, **more: Any) -> fxtune.Certificate:
    return fxtune.verify(model(family), rules, examples=examples, example_inputs=INPUTS.get(family), **more)


# ---- what agrees -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "together"),
    [
        *(("vit", [name]) for name in RULES if name != "vpt"),
        ("deep vit", ["vpt"]),
        *(("bert", names) for names in (["prefix"], ["prompt"], ["vpt"], ["lora", "bitfit"], ["adapter", "bitfit"])),
        ("convnext", ["adapter"]),
        ("resnet", ["bitfit"]),
        ("unet", ["lora"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_both_forms_agree(family: str, together: list[str]) -> None:
    certificate = verified(family, [RULES[name] for name in together])
    print(certificate)
    assert certificate.passed and certificate.breach is None and certificate.examples == 3
    assert [(entry.dtype, entry.of) for entry in certificate.agreement] == [
        (dtype, kind) for dtype in ("float64", "float32", "bfloat16") for kind in ("outputs", "gradients")
    ]
    exact = {entry.of: entry for entry in certificate.agreement if entry.dtype == "float64"}
    assert exact["outputs"].largest <= exact["outputs"].bound == 1e-12
    assert exact["gradients"].largest <= exact["gradients"].bound == 1e-10
    for entry in certificate.agreement[2:]:
        eps = torch.finfo(getattr(torch, entry.dtype)).eps
        assert 0 < entry.unbound <= entry.bound == 2 * entry.original + 2 * eps
        assert entry.original < 50 * eps, "the drawn weights magnify rounding beyond what a dtype can show"


# ---- what does not agree ---------------------------------------------------------------------------------------------


@pytest.fixture
def rules_for(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[nn.Module]], dict[str, Any]]:
    """Registers a user's tuner class, for one test, and gives a rule that inserts it."""
    monkeypatch.setattr(registry, "_entries", {**registry._entries})

    def register(cls: type[nn.Module]) -> dict[str, Any]:
        name = cls.__name__.lower()
        fxtune.tuner(name)(cls)
        at, more = next(place for base, place in AT.items() if issubclass(cls, base))
        return rule(at, name, **more)

    return register


class Shift(nn.Module):
    """Adds a learned number a channel; both forms are right."""

    def __init__(self, place: fxtune.Placement) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(place.width))

    def forward(self, x: Tensor) -> Tensor:
        return self.shift.to(x.dtype).expand_as(x)

    def in_sequence(self, y: Tensor) -> Tensor:
        return y + self.shift.to(y.dtype)


class WrongSign(Shift):
    def in_sequence(self, y: Tensor) -> Tensor:
        return y - self.shift.to(y.dtype)


class OnlyBetweenTokens(Shift):
    """Wrong where there are two tokens at least."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-6 * (x - x.mean(1, keepdim=True))


class LosesDigits(Shift):
    """Wrong in one dtype: it loses digits."""

    def forward(self, x: Tensor) -> Tensor:
        exact = super().forward(x)
        return exact.to(torch.bfloat16).to(x.dtype) if x.dtype is torch.float32 else exact


class Weighted(nn.Module):
    """A factor on every output channel of a linear map, ``s ⊙ (x Wᵀ)`` beside it; the bias is no part of that."""

    maps_widths = True

    def __init__(self, place: fxtune.Placement) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(place.width, place.width_in))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.a.dtype), self.a).to(x.dtype)

    def in_weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.a.to(weight.dtype), bias


class LosesTheModelsBias(Weighted):
    def in_weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return super().in_weights(weight, bias)[0], None


class LosesItsOwnBias(Weighted):
    def __init__(self, place: fxtune.Placement) -> None:
        super().__init__(place)
        self.b = nn.Parameter(torch.zeros(place.width))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.b.to(x.dtype)


class Prefix(nn.Module):
    """A prefix in the softmax; `factor` is on its logits in the unbound form."""

    factor = 1.0

    def __init__(self, place: fxtune.Placement) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.randn(1, place.kv_heads, 2, place.head_dim))
        self.values = nn.Parameter(torch.randn(1, place.kv_heads, 2, place.head_dim))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool, scale: float | None, dropout: float
    ) -> tuple[Tensor, Tensor]:
        keys = self.factor * self.keys
        return unbound_attention(q, k, v, keys, self.values, mask=mask, causal=causal, scale=scale)

    def attend_original(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool, scale: float | None, dropout: float
    ) -> Tensor:
        return prefix_attention(q, k, v, self.keys, self.values, mask=mask, causal=causal, scale=scale)


class WrongFactor(Prefix):
    factor = 1.0 + 1e-9


class ForgetsTheMask(Prefix):
    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool, scale: float | None, dropout: float
    ) -> tuple[Tensor, Tensor]:
        return super().attend(q, k, v, None, causal=causal, scale=scale, dropout=dropout)


AT = {Shift: ("ffn", {"reads": "output"}), Weighted: ("mha", {"on": ["q_proj"]}), Prefix: ("mha", {})}


def test_tuners_without_a_fault_pass(rules_for: Callable[..., dict[str, Any]]) -> None:
    assert_equivalent(model("vit"), [rules_for(cls) for cls in (Shift, Weighted, Prefix)], examples=2)


@pytest.mark.parametrize("cls", [WrongSign, LosesTheModelsBias, LosesItsOwnBias, WrongFactor])
def test_a_fault_is_caught_and_made_small(cls: type[nn.Module], rules_for: Callable[..., dict[str, Any]]) -> None:
    if cls is LosesTheModelsBias:
        # So comparing the two forms of the model as its library builds it would not show the fault.
        assert not any(p.any() for name, p in model("vit").named_parameters() if name.endswith("qkv.bias"))
    certificate = verified("vit", rules_for(cls), 20, dtypes=["float64"])
    breach = certificate.breach
    assert not certificate.passed and breach is not None
    assert certificate.examples == 1, "it goes on after a breach in float64"
    assert breach.example.sizes == {"x.shape[0]": 1} and breach.shapes == {"x": (1, 3, 16, 16)} and breach.batch == 1
    assert breach.error > breach.bound == 1e-12 and (breach.dtype, breach.of) == ("float64", "outputs")
    for text in (str(certificate), str(breach)):
        assert all(part in text for part in ("disagree", "output", "1 x 3 x 16 x 16", breach.reproduce))


def test_the_smallest_example_still_fails(rules_for: Callable[..., dict[str, Any]]) -> None:
    breach = verified("bert", rules_for(OnlyBetweenTokens), dtypes=["float64"]).breach
    assert breach is not None and not breach.example.padded
    assert breach.shapes == {"input_ids": (1, 2), "attention_mask": (1, 2)}
    again = eval(breach.reproduce, {"fxtune": fxtune, "model": model("bert")})
    assert again.breach == breach and again.examples == 1


def test_a_forgotten_mask_needs_a_mask(rules_for: Callable[..., dict[str, Any]]) -> None:
    breach = verified("bert", rules_for(ForgetsTheMask), 20, dtypes=["float64"]).breach
    assert breach is not None and breach.example.padded and breach.example.sizes["input_ids.shape[1]"] > 1


def test_lost_digits_are_caught_against_the_other_form(rules_for: Callable[..., dict[str, Any]]) -> None:
    certificate = verified("vit", rules_for(LosesDigits), 4)
    assert {entry.dtype for entry in certificate.agreement if not entry.holds} == {"float32"}
    breach = certificate.breach
    assert breach is not None and breach.dtype == "float32" and breach.error > breach.bound
    assert certificate.examples == 4 and breach.batch == 1
    with pytest.raises(AssertionError, match="the forms disagree: outputs in float32"):
        assert_equivalent(model("vit"), rules_for(LosesDigits), examples=2, dtypes=["float32"])


@dataclass(frozen=True)
class Drawn:
    """As `small_models` draws them."""

    width: int

    def build(self) -> tuple[nn.Module, Any]:
        class Net(nn.Module):
            def __init__(self, width: int) -> None:
                super().__init__()
                self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

            def forward(self, x: Tensor) -> Tensor:
                y: Tensor = self.fc2(F.gelu(self.fc1(x)))
                return x + y

        return Net(self.width), (torch.randn(2, 3, self.width),)


@pytest.mark.parametrize("cls", [Shift, WrongSign])
def test_a_property_of_a_users_tuner(cls: type[nn.Module], rules_for: Callable[..., dict[str, Any]]) -> None:
    rules = rules_for(cls)

    @given(st.builds(Drawn, st.integers(2, 4)))
    @settings(max_examples=3, phases=[Phase.generate])
    def test_my_tuner(model: Drawn) -> None:
        assert_equivalent(model, rules)

    if cls is Shift:
        test_my_tuner()
    else:
        with pytest.raises(AssertionError, match=r"the forms disagree: outputs in float64(.|\n)*x\.shape\[1\] = 1"):
            test_my_tuner()


# ---- how it is measured ----------------------------------------------------------------------------------------------


SHAPES = st.lists(st.integers(0, 4), max_size=4).map(torch.Size)


@given(st.dictionaries(st.sampled_from(["a.bias", "b.running_mean", "c", "d.weight"]), SHAPES), SHAPES, st.integers(0))
def test_drawn_weights_are_never_zero(shapes: dict[str, torch.Size], of_variance: torch.Size, seed: int) -> None:
    drawn = drawn_weights({**shapes, "b.running_var": of_variance}, seed % 2**31)
    variance = drawn.pop("b.running_var")
    assert variance.shape == of_variance and ((variance >= 0.5) & (variance <= 1)).all()
    assert {name: value.shape for name, value in drawn.items()} == shapes
    for value in drawn.values():
        size = value.abs() * (value.shape[1:].numel() if value.dim() > 1 else 1) ** 0.5
        assert ((size > 0.49) & (size < 1.01)).all()


def test_representable_values_stay_finite() -> None:
    extreme = torch.tensor([torch.finfo(torch.float32).min, 1.0 + 2**-20, float("-inf")])
    assert representable(extreme).tolist() == [-torch.finfo(torch.bfloat16).max, 1.0, float("-inf")]


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    example = families.texts(2, 8)
    signature: Any = fxtune.capture(model("bert"), example).signature
    return Inputs([signature], (), example)


@given(st.integers(0, 2**31))
def test_drawn_inputs_are_like_the_example(inputs: Inputs, seed: int) -> None:
    example = inputs.example(seed)
    ids, mask = inputs.draw(example).tensors().values()
    batch, length = example.sizes["input_ids.shape[0]"], example.sizes["input_ids.shape[1]"]
    assert ids.shape == mask.shape == (batch, length) and 1 <= batch <= 4 and 1 <= length <= 16
    assert ids.min() >= 0 and ids.max() < 40 and ids.dtype is mask.dtype is torch.int64
    assert ((mask == 0) | (mask == 1)).all() and (mask.sum(1) >= 1).all()
    assert (mask.diff(dim=1) <= 0).all() or (mask.diff(dim=1) >= 0).all()
    full = inputs.draw(example.model_copy(update={"padded": False})).tensors()
    assert full["attention_mask"].all() and torch.equal(full["input_ids"], ids)
    for smaller in inputs.smaller(example):
        assert smaller != example and inputs.fits(smaller)
        assert all(size <= example.sizes[key] for key, size in smaller.sizes.items())


def test_draws_differ_in_size_and_in_padding(inputs: Inputs) -> None:
    drawn = [inputs.draw(inputs.example(seed)).tensors()["attention_mask"] for seed in range(60)]
    assert {mask.shape[0] for mask in drawn} == {1, 2, 3, 4} and len({mask.shape[1] for mask in drawn}) > 10
    assert any((mask[:, 0] == 0).any() for mask in drawn) and any((mask[:, -1] == 0).any() for mask in drawn)
    assert any(mask.all() and mask.numel() > 1 for mask in drawn)


def test_inputs_are_drawn_in_the_size_of_the_example() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, added: dict[str, Tensor], mask: Tensor) -> Tensor:
            return x * added["scale"] * mask

    given = {
        "x": torch.tensor([100.0, -100.0]).repeat(2, 5, 2),
        "added": {"scale": torch.full((4,), float("-inf"))},
        "mask": torch.tensor([[1.0], [0.0]]).expand(2, 5).unsqueeze(-1).clone(),
    }
    signature: Any = fxtune.capture(Net(), given).signature
    drawn = Inputs([signature], (), given)
    example = Example(seed=3, sizes={"x.shape[0]": 4, "x.shape[1]": 50})
    call = drawn.draw(example)
    assert list(call.tensors()) == ["x", "added['scale']", "mask"]
    x, scale, mask = call.tensors().values()
    assert x.shape == (4, 50, 4) and x.dtype is torch.float64 and 80 < x.square().mean().sqrt() < 120
    assert (scale == float("-inf")).all()
    assert mask.shape == (4, 50, 1) and mask.all()  # of one entry in the last dimension, one at least is kept
    assert call.kwargs["added"]["scale"] is scale


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8))
def test_a_broken_mean_has_a_broken_example(pairs: list[tuple[float, float]]) -> None:
    """So there is always an example to make small."""
    each = [Measured(unbound, original, unbound, "") for unbound, original in pairs]
    if all(one.holds("outputs", torch.float32) for one in each):
        number, bound = Measured.over(each).judged("outputs", torch.float32)
        assert number <= bound * (1 + 1e-12)


def test_errors_are_relative_to_what_they_are_errors_of() -> None:
    truth = {"a": torch.tensor([1.0, -4.0]), "zero": torch.tensor([0.0]), "inf": torch.tensor([float("inf"), 2.0])}
    found = {**truth, "a": torch.tensor([1.0, -4.0 + 2**-10])}
    measured = measure("outputs", torch.float64, truth, found)
    assert (measured.tensor, measured.largest) == ("a", 2**-12)
    assert measured.unbound == pytest.approx(2**-12 / 3**0.5)
    for other in ({**truth, "zero": torch.tensor([1e-30])}, {"a": truth["a"], "zero": truth["zero"]},
                  {**truth, "a": torch.tensor([1.0])}, {**truth, "a": torch.tensor([1.0, float("nan")])}):  # fmt: skip
        broken = measure("outputs", torch.bfloat16, truth, other, other)
        assert broken.largest == float("inf") and not broken.holds("outputs", torch.bfloat16)
    # A gradient that is zero but for rounding, beside one of 4.
    rounded = {**truth, "zero": torch.tensor([1e-15])}
    assert measure("gradients", torch.float64, truth, rounded).holds("gradients", torch.float64)
    wrong = {**truth, "zero": torch.tensor([1e-13])}
    assert not measure("gradients", torch.float64, truth, wrong).holds("gradients", torch.float64)


@given(st.integers(0, 10), st.integers(1, 10))
def test_shrinking_goes_to_the_smallest_that_fails(size: int, least: int) -> None:
    def smaller(example: Example) -> list[Example]:
        old = example.sizes["n"]
        return [Example(seed=0, sizes={"n": n}) for n in (1, old // 2, old - old // 4, old - 1) if 0 < n < old]

    start = Example(seed=0, sizes={"n": least + size})
    found, finding = smallest(start, 0, smaller, lambda one: one.sizes["n"] if one.sizes["n"] >= least else None)
    assert found.sizes["n"] == least and finding == (least if size else 0)


# ---- the certificate, and what is left behind ------------------------------------------------------------------------

NUMBER = st.floats(0, allow_nan=False)
AGREEMENT = st.builds(
    Agreement, dtype=st.text(), of=st.sampled_from(["outputs", "gradients"]), tensor=st.text(), largest=NUMBER,
    unbound=NUMBER, original=NUMBER, bound=NUMBER, holds=st.booleans(),
)  # fmt: skip
EXAMPLE = st.builds(Example, seed=st.integers(0), sizes=st.dictionaries(st.text(), st.integers()), padded=st.booleans())
BREACH = st.builds(
    Breach, example=EXAMPLE, dtype=st.text(), of=st.sampled_from(["outputs", "gradients"]), tensor=st.text(),
    error=NUMBER, bound=NUMBER, reproduce=st.text(),
    shapes=st.dictionaries(st.text(), st.lists(st.integers()).map(tuple)),
)  # fmt: skip
TEXTS = st.lists(st.text()).map(tuple)
CERTIFICATE = st.builds(
    fxtune.Certificate, model=st.text(), rules=TEXTS, tuners=TEXTS, examples=st.integers(), seed=st.integers(),
    agreement=st.lists(AGREEMENT, max_size=3).map(tuple), versions=st.dictionaries(st.text(), st.text()),
    passed=st.booleans(), breach=st.none() | BREACH,
)  # fmt: skip


@given(CERTIFICATE)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_a_certificate_is_saved_and_loaded(tmp_path: Path, certificate: fxtune.Certificate) -> None:
    certificate.save(tmp_path / "certificate.json")
    assert fxtune.Certificate.load(tmp_path / "certificate.json") == certificate
    json.loads((tmp_path / "certificate.json").read_text("utf-8"), parse_constant=lambda name: pytest.fail(name))
    assert str(certificate)


def test_what_is_no_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"model": 1}', "utf-8")
    for path in (tmp_path / "other.json", tmp_path / "none.json"):
        with pytest.raises(fxtune.SourceError, match="certificate") as raised:
            fxtune.Certificate.load(path)
        assert raised.value.where == str(path)


def test_the_same_seed_gives_the_same_certificate_and_leaves_the_model_alone() -> None:
    subject = model("vit")
    before = {name: tensor.clone() for name, tensor in subject.state_dict().items()}
    flags = [(module.training, dict(module.__dict__)) for module in subject.modules()]
    places = [tensor.data_ptr() for tensor in subject.state_dict().values()]
    torch.manual_seed(0)
    random = torch.get_rng_state()
    certificates = [verified("vit", "bitfit", 2, seed=seed) for seed in (7, 7, 8)]
    assert certificates[0] == certificates[1] and certificates[0].agreement != certificates[2].agreement
    assert certificates[0].rules == ("bitfit",) and certificates[0].seed == 7
    assert certificates[0].versions.keys() == {"fxtune", "torch", "python", "device"}
    assert "biased <- bitfit" in certificates[0].tuners[0]
    assert torch.equal(torch.get_rng_state(), random)
    after = subject.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert [(module.training, dict(module.__dict__)) for module in subject.modules()] == flags
    assert [tensor.data_ptr() for tensor in after.values()] == places
    assert all(p.requires_grad and p.grad is None for p in subject.parameters())


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"rules": "tri_res"}, fxtune.RuleError, ["No original form of res_adapter", "reads: output"]),
        ({"dtypes": ["float63"]}, fxtune.FxtuneError, ["float63", "bfloat16"]),
        ({"dtypes": "float64"}, fxtune.FxtuneError, ["dtypes='float64'"]),
        ({"dtypes": []}, fxtune.FxtuneError, ["dtypes=[]"]),
        ({"dtypes": ["int64"]}, fxtune.FxtuneError, ["int64"]),
        ({"examples": 0}, fxtune.FxtuneError, ["examples=0", "at least 1"]),
        ({"examples": []}, fxtune.FxtuneError, ["examples=[]"]),
        ({"examples": [{"sead": 1}]}, fxtune.FxtuneError, ["sead"]),
        ({"model": torch.nn.Linear(2, 2, device="meta"), "example_inputs": (torch.randn(2, 2),)},
         fxtune.UnsupportedModelError, ["meta device"]),
    ],
)  # fmt: skip
def test_bad_arguments_are_told(arguments: dict[str, Any], error: type[Exception], parts: list[str]) -> None:
    with pytest.raises(error) as raised:
        fxtune.verify(**{"model": model("vit"), "rules": "adapter", **arguments})
    assert all(part in str(raised.value) for part in parts), raised.value


def test_rules_that_put_nothing_anywhere_are_refused() -> None:
    with pytest.raises(fxtune.PlanError, match="nothing to verify: the rules put no tuner into this Linear"):
        fxtune.verify(nn.Linear(3, 3), {"train": ["head"]}, example_inputs=(torch.randn(2, 3),))


def test_forms_with_other_weights_are_refused(rules_for: Callable[..., dict[str, Any]]) -> None:
    class Counting(Shift):
        made = 0

        def __init__(self, place: fxtune.Placement) -> None:
            super().__init__(place)
            Counting.made += 1
            self.more = nn.Parameter(torch.zeros(Counting.made))

    with pytest.raises(fxtune.PlanError, match="do not have the same weights"):
        verified("vit", rules_for(Counting))


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("COLUMNS", "200")

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fxtune", "verify", *args])
        monkeypatch.setattr(sys, "path", [*sys.path])
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run


def test_the_command_prints_and_saves(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    out = tmp_path / "certificate.json"
    status, shown, complaint = run(
        f"{__name__}:vit", "-r", "bitfit", "--examples", "2", "--seed", "5", "--out", str(out)
    )
    assert (status, complaint) == (0, ""), complaint
    certificate = fxtune.Certificate.load(out)
    assert certificate.passed and (certificate.examples, certificate.seed) == (2, 5)
    assert all(word in shown for word in ("both forms agree", "bfloat16", "gradients", "2 examples of seed 5"))


def test_the_command_fails_on_a_breach(
    run: Callable[..., tuple[int, str, str]], rules_for: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(json.dumps({"fxtune": 1, **rules_for(WrongSign)}), "utf-8")
    status, shown, complaint = run(f"{__name__}:vit", "--rules", str(path), "--examples", "2")
    assert status == 1 and "the forms disagree" in shown
    assert "x.shape[0] = 1" in complaint and f"fxtune.verify('{__name__}:vit', ['{path}'], examples=" in complaint


def test_the_command_tells_what_has_no_original_form(run: Callable[..., tuple[int, str, str]]) -> None:
    status, shown, complaint = run(f"{__name__}:vit", "--rules", "tri_res")
    assert (status, shown) == (1, "") and complaint.startswith("RuleError: No original form")
