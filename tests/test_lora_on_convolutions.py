"""``lora`` on convolutions: against a changed weight, against PEFT, in whole networks, and where it does not go."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import peft
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import fxtune
from families import FAMILIES, build
from forms import awaken, tuners
from fxtune.errors import MatchError, PlanError, RuleError
from fxtune.matching import Convolution
from fxtune.tuners import Placement
from fxtune.tuners import build as make
from fxtune.tuners.lora import Lora
from test_tuner_forms import agree, assert_caught, awake, close, draw

CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@st.composite
def convolutions(draw_from: st.DrawFn) -> tuple[int, int, Convolution]:
    """D_in, D, and a convolution over one to three axes, grouped or not."""
    axes, groups = draw_from(st.integers(1, 3)), draw_from(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw_from(st.integers(low, high)) for _ in range(axes))

    named = draw_from(st.sampled_from([None, None, "same", "valid"]))
    stride = (1,) * axes if named == "same" else each(1, 3)
    kernel, dilation = each(1, 3), each(1, 2)
    if named == "same":  # torch warns of even kernels, which need a copy of the input
        kernel = tuple(side | 1 for side in kernel)
    convolution = Convolution(kernel, stride, named or each(0, 2), dilation, groups)
    return groups * draw_from(st.integers(1, 3)), groups * draw_from(st.integers(1, 3)), convolution


def matrix(d_in: int, d: int, convolution: Convolution) -> tuple[int, ...]:
    return (d, d_in // convolution.groups, *convolution.kernel)


def forms_agree_with_a_changed_weight(
    cls: type[Lora], seed: int, drawn: tuple[int, int, Convolution], rank: int, alpha: float | None, bias: bool
) -> None:
    """Both forms against ``W + s Σ_j b_j ⊗ a_j`` in a plain convolution, outputs and gradients."""
    d_in, d, how = drawn
    shape = matrix(d_in, d, how)
    rank = min(rank, d, torch.Size(shape[1:]).numel())
    place = Placement(d, 1, "convolution", width_in=d_in, operation="conv", convolution=how)
    tuner: Any = awake(cls(place, rank=rank, alpha=alpha), seed)
    x = draw(seed, 2, d_in, *(6 for _ in how.kernel)).requires_grad_()
    w, b = draw(seed + 9, *shape), draw(seed + 8, d) if bias else None

    def convolve(weight: Tensor, bias: Tensor | None) -> Tensor:
        convolved: Tensor = CONVOLVE[len(how.kernel)](
            x, weight, bias, how.stride, how.padding, how.dilation, how.groups
        )
        return convolved

    def changed() -> Tensor:
        update = sum(tuner.B[:, j].reshape(d, *(1 for _ in shape[1:])) * tuner.A[j].unsqueeze(0) for j in range(rank))
        return convolve(w + (alpha or rank) / rank * update, b)

    weights = [x, *tuner.parameters()]
    agree(lambda: convolve(w, b) + tuner.on_map(x), changed, weights)
    agree(lambda: convolve(*tuner.in_weights(w, b)), changed, weights)


DRAWN = (
    st.integers(0, 2**32), convolutions(), st.integers(1, 6), st.none() | st.floats(0.1, 30), st.booleans()
)  # fmt: skip


@given(*DRAWN)
def test_both_forms_are_a_changed_weight(
    seed: int, drawn: tuple[int, int, Convolution], rank: int, alpha: float | None, bias: bool
) -> None:
    forms_agree_with_a_changed_weight(Lora, seed, drawn, rank, alpha, bias)


class KernelTurned(Lora):
    def in_weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + (super().in_weights(weight, None)[0] - weight).flip(-1), bias


class OneGroupForAll(Lora):
    def on_map(self, x: Tensor) -> Tensor:
        assert self.convolution is not None
        groups = self.convolution.groups
        mean = x.unflatten(1, (groups, -1)).mean(1, keepdim=True)
        return super().on_map(mean.expand(-1, groups, *(-1 for _ in x.shape[1:])).flatten(1, 2))


class NoFactor(Lora):
    def on_map(self, x: Tensor) -> Tensor:
        return super().on_map(x) / self.factor


@pytest.mark.parametrize("faulty", [KernelTurned, OneGroupForAll, NoFactor])
def test_a_fault_is_seen(faulty: type[Lora]) -> None:
    assert_caught(forms_agree_with_a_changed_weight, faulty, *DRAWN)


@given(st.integers(0, 2**32), convolutions())
def test_it_starts_as_the_convolution(seed: int, drawn: tuple[int, int, Convolution]) -> None:
    """In the shapes and at the bound of PEFT's: A within 1/√fan_in, B zero; and no bit of the output changes."""
    d_in, d, how = drawn
    place = Placement(d, 1, "convolution", width_in=d_in, operation="conv", convolution=how)
    tuner: Any = make("lora", {"rank": 1}, place, method="on_map", seed=seed)
    _, *reads = matrix(d_in, d, how)
    state = {name: tuple(weight.shape) for name, weight in tuner.state_dict().items()}
    assert state == {"A": (1, *reads), "B": (d, 1)}
    assert not tuner.B.any() and 0 < tuner.A.abs().max() <= torch.Size(reads).numel() ** -0.5
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        added = tuner((draw(seed, 2, d_in, *(6 for _ in how.kernel)) * 100).to(dtype))
        w = draw(seed, d, *reads).to(dtype)
        assert added.dtype == dtype and not added.any()
        assert torch.equal(tuner.in_weights(w, None)[0], w)


def test_the_largest_rank_is_told() -> None:
    """min(D, k² D_in / g); of a depth-wise kernel of 7 no more than 49."""
    depthwise = Convolution((7, 7), (1, 1), (3, 3), (1, 1), 96)
    place = Placement(96, 1, "convolution", width_in=96, operation="conv", path="a.b", convolution=depthwise)
    assert make("lora", {"rank": 49}, place).A.shape == (49, 1, 7, 7)
    with pytest.raises(RuleError, match="cannot have rank 50") as error:
        make("lora", {"rank": 50}, place)
    assert "96 x 49" in str(error.value) and "rank: 49" in str(error.value) and "`a.b`" in str(error.value)
    with pytest.raises(RuleError, match="rank: 4 is the largest"):
        make("lora", {}, Placement(4, 1, "linear", width_in=32, operation="linear"))


# ---- against PEFT's --------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Convolutions of one group in every geometry that PEFT knows, which leaves dilation out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, (3, 5), stride=(2, 1), padding=(1, 2))
        self.second = nn.Conv2d(6, 8, 1, stride=2, bias=False)
        self.third = nn.Conv2d(8, 5, 1)
        self.fourth = nn.Conv1d(5, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.third(torch.relu(self.second(torch.relu(self.first(x)))))
        h = self.fourth(torch.relu(h).flatten(2))
        return h


def test_its_weights_are_pefts() -> None:
    model = Net().double().eval()
    x = draw(0, 2, 3, 9, 8)
    rules = {"rules": [{"at": at, "insert": {"lora": {"rank": 2, "alpha": 5.0}}} for at in ("convolution", "linear")]}
    tuned = fxtune.apply(model, rules, example_inputs=(x,), dtype=torch.float64).eval()
    awaken(tuned)
    names = {"convolution_lora": "first", "convolution_lora_2": "second", "linear_lora": "third"}
    names["convolution_lora_3"] = "fourth"
    config = peft.LoraConfig(r=2, lora_alpha=5, target_modules=list(names.values()))
    theirs = peft.get_peft_model(copy.deepcopy(model), config, autocast_adapter_dtype=False).eval()
    for ours, name in names.items():
        tuner, layer = tuned.get_submodule(f"tuners.{ours}"), theirs.base_model.model.get_submodule(name)
        for own, their in ((tuner.A, layer.lora_A["default"].weight), (tuner.B, layer.lora_B["default"].weight)):
            assert own.numel() == their.numel()
            their.data = own.detach().reshape(their.shape)
    expected = theirs(x)
    assert (expected - model(x)).abs().max() > 0.1
    close(tuned(x), expected, 1e-12)


# ---- in whole networks -----------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Convolutions by operator, in a layout of the module's own, with positions turned, and on a map overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, 3, 2))
        self.grouped = nn.Conv2d(6, 4, 3, padding="same", dilation=2, groups=2, bias=False)
        self.plain = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # B x W x H x C
        h = F.conv2d(x.permute(0, 3, 2, 1), self.weight, None, (2, 1)).permute(0, 3, 2, 1)
        h = self.grouped(torch.relu(h).permute(0, 3, 1, 2))
        y: Tensor = self.plain(h)
        h.mul_(2.0)
        return y + h


def changed(model: nn.Module, own: dict[str, nn.Parameter], operations: dict[str, Any]) -> nn.Module:
    """The model with each tuner's update in the weight of its operation."""
    model = copy.deepcopy(model)
    weights = dict(model.named_parameters())
    for path, operation in operations.items():
        a, b = own[f"{path}.A"].detach(), own[f"{path}.B"].detach()
        weight = weights[operation.weights.weight]
        weight.data += torch.einsum("dr,rc->dc", b, a.flatten(1)).reshape(weight.shape)
    return model


def odd() -> tuple[nn.Module, Any]:
    return Odd(), {"x": draw(0, 2, 9, 7, 3)}


def of_family(name: str) -> tuple[nn.Module, Any]:
    inputs = FAMILIES[name].inputs(2)
    return build(name), {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}


RULES: dict[str, Any] = {"rules": [{"at": "convolution", "insert": {"lora": {"rank": 3}}}]}
CASES = {
    "odd": (odd, RULES),
    "resnet": (lambda: of_family("resnet"), "lora"),
    "convnext": (lambda: of_family("convnext"), "lora"),
    "unet": (lambda: of_family("unet"), RULES),
}


@pytest.mark.parametrize("name", CASES)
def test_both_forms_of_a_network_are_it_with_other_weights(name: str) -> None:
    make_case, rules = CASES[name]
    model, inputs = make_case()
    model = model.double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.any():
                weight.fill_(0.5)  # the last factors of a residual branch
    unbound, original = (
        fxtune.apply(model, rules, example_inputs=((), inputs), dtype=torch.float64, form=form, seed=1).eval()
        for form in ("unbound", "original")
    )
    awaken(unbound, 0.2)
    original.load_state_dict(unbound.state_dict())
    patch = fxtune.inspect(model, rules, example_inputs=((), inputs)).patch
    assert patch is not None
    operations = {i.path: i.site.operation for i in patch.insertions}
    expected = value(changed(model, tuners(unbound), operations)(**inputs))
    before = value(model(**inputs))
    assert (expected - before).abs().max() > 0.01 * expected.abs().max()
    close(value(unbound(**inputs)), expected, 1e-12)
    close(value(original(**inputs)), expected, 1e-12)
    assert unbound.strip() is model


def value(output: Any) -> Tensor:
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found.detach()


def lora_weights(modules: Iterator[tuple[str, nn.Module]], head: str) -> int:
    """r (k² D_in / g + D) of each convolution and linear map but the head."""
    layers = [m for path, m in modules if isinstance(m, nn.Conv2d | nn.Linear) and path != head]
    return sum(8 * (layer.weight[0].numel() + layer.weight.shape[0]) for layer in layers)


@pytest.mark.parametrize("family", ["resnet", "convnext"])
def test_the_shipped_rules_of_a_network_without_attention(family: str) -> None:
    model = build(family)
    tuned = fxtune.apply(model, "lora", seed=0)
    head = FAMILIES[family].head
    assert sum(w.numel() for w in tuners(tuned).values()) == lora_weights(model.named_modules(), head)
    assert {name for name in tuned.trainable if "tuners" not in name} == {f"{head}.weight", f"{head}.bias"}
    inputs = FAMILIES[family].inputs(3)
    assert torch.equal(tuned.eval()(**inputs), model(**inputs))
    assert "the model has no mha" in str(tuned.report())


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "mixer_s32_224"])
def test_the_shipped_rules_of_larger_networks_without_attention(name: str) -> None:
    """Whatever of convolutions and pointwise maps they have; neither a head nor a classifier's layers."""
    with torch.device("meta"):
        model = timm.create_model(name)
    patch = fxtune.inspect(model, "lora").patch
    assert patch is not None
    found = {i.site.path for i in patch.insertions}
    layers = {path: m for path, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert found == {path for path in layers if not path.startswith(("fc", "head"))}


@pytest.mark.parametrize("family", ["vit", "unet"])
def test_the_shipped_rules_leave_convolutions_beside_attention(family: str) -> None:
    model = build(family)
    patch = fxtune.inspect(model, "lora", example_inputs=((), FAMILIES[family].inputs(2))).patch
    assert patch is not None and {i.site.kind.partition(".")[0] for i in patch.insertions} == {"mha"}
    assert [rule.skipped is None for rule in patch.rules] == [True, False, False]
    assert "mha, and the rule is for models without" in str(patch.rules[1].skipped)


def test_a_rule_for_other_models_is_skipped_whatever_it_expects() -> None:
    rule = {"at": "convolution", "unless": "ffn", "expect": 99, "required": True, "insert": "lora"}
    with pytest.raises(MatchError, match="no rule"):
        fxtune.apply(build("vit"), {"rules": [rule]})
    with pytest.raises(fxtune.PatternError, match="nothing_such"):
        fxtune.apply(build("vit"), {"rules": [{**rule, "unless": "nothing_such"}]})


class Padded(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


@pytest.mark.parametrize("form", ["unbound", "original"])
@pytest.mark.parametrize(
    ("layer", "rule", "error", "found"),
    [
        (nn.ConvTranspose2d(4, 4, 3, padding=1), {}, RuleError, "conv_transpose2d"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), {}, PlanError, "a value inside a folded module"),
    ],
)
def test_where_it_does_not_go(layer: nn.Module, rule: Any, error: Any, found: str, form: Any) -> None:
    with warnings.catch_warnings(), pytest.raises(error, match=found):
        warnings.simplefilter("error")
        fxtune.apply(Padded(layer), RULES, example_inputs=(torch.randn(2, 4, 6, 5),), form=form)


def test_it_reads_the_map_and_not_the_output() -> None:
    rules = {"rules": [{"at": "convolution", "reads": "output", "insert": {"lora": {"rank": 2}}}]}
    with pytest.raises(RuleError, match="not on 'conv'") as error:
        fxtune.apply(Net(), rules, example_inputs=(torch.randn(2, 3, 9, 8),))
    assert "leave `reads: output` out" in str(error.value)
