"""`fxtune.verify`: it passes what agrees, catches what doesn't, makes that small, and writes it down."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import fxtune
from fxtune import cli
from fxtune.testing import assert_equivalent
from fxtune.tuners import registry
from fxtune.unbinding import prefix_attention, unbound_attention
from verified import RULES, model, rule, verified

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
    status, shown, complaint = run("verified:vit", "-r", "bitfit", "--examples", "2", "--seed", "5", "--out", str(out))
    assert (status, complaint) == (0, ""), complaint
    certificate = fxtune.Certificate.load(out)
    assert certificate.passed and (certificate.examples, certificate.seed) == (2, 5)
    assert all(word in shown for word in ("both forms agree", "bfloat16", "gradients", "2 examples of seed 5"))


def test_the_command_fails_on_a_breach(
    run: Callable[..., tuple[int, str, str]], rules_for: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(json.dumps({"fxtune": 1, **rules_for(WrongSign)}), "utf-8")
    status, shown, complaint = run("verified:vit", "--rules", str(path), "--examples", "2")
    assert status == 1 and "the forms disagree" in shown
    assert "x.shape[0] = 1" in complaint and f"fxtune.verify('verified:vit', ['{path}'], examples=" in complaint


def test_the_command_tells_what_has_no_original_form(run: Callable[..., tuple[int, str, str]]) -> None:
    status, shown, complaint = run("verified:vit", "--rules", "tri_res")
    assert (status, shown) == (1, "") and complaint.startswith("RuleError: No original form")
