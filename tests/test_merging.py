"""Tuners in the weights that they change: the same numbers, the original's cost, and the way back."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import fxtune
from effort import examples
from families import FAMILIES, build, tuned_on
from form_models import awake
from fxtune.tuned import TunedModel, one_capture

LIMITS = {torch.float64: 1e-12, torch.float32: 1e-6}
"""Merged against unmerged, relative to the largest output."""


@pytest.fixture(autouse=True, scope="module")
def captured_once() -> Iterator[None]:
    """A model that is built again is not captured again: nearly all of the time would go there."""
    with one_capture():
        yield


def outputs(model: nn.Module, *args: Any, **kwargs: Any) -> list[Tensor]:
    with torch.no_grad():
        leaves = pytree.tree_leaves(model.eval()(*args, **kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to the largest expected number."""
    pairs = [(a.double(), b.double()) for a, b in zip(found, expected, strict=True)]
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def exactly(tuned: nn.Module, *args: Tensor, **inputs: Tensor) -> list[Tensor]:
    """What the weights as they are come to in float64."""
    return outputs(copy.deepcopy(tuned).double(), *(x.double() for x in args), **in_dtype(inputs, torch.float64))


def attainable(found: list[Tensor], exact: list[Tensor]) -> float:
    """How near two float32 runs of a U-Net can come to each other on this machine, from the unmerged one's own error.

    Merged and unmerged round independently, so they can't agree better than each of them agrees with the truth: the
    unmerged to its error, the merged to at most twice that.
    A U-Net's convolutions add up thousands of products a number: 7e-7 with oneDNN's AVX-512, up to twice that
    with AVX2. The plain U-Net, without any tuner, differs from itself by 1.4e-6 to 2.1e-6 when its images lie
    channels-last.
    """
    return max(LIMITS[torch.float32], 3 * error(found, exact))


def tuners(model: nn.Module) -> list[str]:
    return [name for name in model.state_dict() if "tuners" in name.split(".")]


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- every family ----------------------------------------------------------------------------------------------------

LINEAR = {"name": "lora_everywhere", "train": ["tuners"], "rules": [{"at": "linear", "insert": {"lora": {"rank": 3}}}]}
METHODS = {"lora": LINEAR, "ssf": "ssf", "bitfit": "bitfit"}
MIXED = ["ssf", LINEAR, "bitfit"]
CELLS = [(family, method) for family in FAMILIES for method in (*METHODS, "mixed")]


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize(("family", "method"), CELLS)
def test_merged_computes_the_same_and_unmerged_is_as_before(family: str, method: str, dtype: torch.dtype) -> None:
    model = build(family).to(dtype)
    inputs = in_dtype(FAMILIES[family].inputs(2), dtype)
    rules = MIXED if method == "mixed" else METHODS[method]
    original = bits(model)
    tuned = tuned_on(model, ((), inputs), rules, dtype=dtype)
    before, expected, plain = bits(tuned), outputs(tuned, **inputs), outputs(model, **inputs)
    assert error(expected, plain) > 1e-3, "the tuners change nothing"
    exact = exactly(tuned, **inputs)
    limit = attainable(expected, exact) if (family, dtype) == ("unet", torch.float32) else LIMITS[dtype]

    assert tuned.merge() is tuned
    found = outputs(tuned, **inputs)
    in_weights = error(exactly(tuned, **inputs), exact)
    print(f"{family} {method} {dtype}: {error(found, expected):.1e}, limit {limit:.1e}; the weights {in_weights:.1e}")
    assert error(found, expected) <= limit
    assert in_weights <= LIMITS[dtype], "what merging itself costs, all later rounding left out"
    assert not tuners(tuned)
    assert same_bits(bits(model), original)

    assert tuned.unmerge() is tuned
    assert same_bits(bits(tuned), before)
    assert all(map(torch.equal, outputs(tuned, **inputs), expected))
    assert same_bits(bits(tuned.strip()), original)


EVERY_LAYER = {
    "lora": [{"at": at, "insert": {"lora": {"rank": 2}}} for at in ("linear", "convolution")],
    "ssf": [{"at": at, "reads": "output", "insert": "ssf"} for at in ("linear", "convolution", "norm")],
}


@pytest.mark.parametrize("method", EVERY_LAYER)
def test_each_layer_of_a_unet_holds_the_limit_in_float32(method: str) -> None:
    """The whole U-Net adds up the roundings of its hundred layers; here each stands alone."""
    model, kinds = build("unet"), (nn.Linear, nn.Conv2d, *((nn.GroupNorm, nn.LayerNorm) if method == "ssf" else ()))
    read: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: read.update({name: args[0]}))
        for name, layer in model.named_modules()
        if isinstance(layer, kinds)
    ]
    outputs(model, **FAMILIES["unet"].inputs(2))
    for hook in hooks:
        hook.remove()
    layers = {(str(model.get_submodule(name)), x.shape): (name, x) for name, x in read.items()}  # of each kind one
    errors = {}
    for name, x in layers.values():
        tuned = tuned_on(model.get_submodule(name), (x,), {"train": ["tuners"], "rules": EVERY_LAYER[method]})
        expected = outputs(tuned, x)
        limit = attainable(expected, exactly(tuned, x))
        errors[name] = (error(outputs(tuned.merge(), x), expected), limit)
        assert not tuners(tuned)
    print(f"unet {method}: {len(errors)} layers, {max(errors.values())}")
    assert len(errors) >= 30
    assert all(found <= limit for found, limit in errors.values()), errors


@pytest.mark.parametrize(("family", "method"), CELLS)
def test_in_bfloat16_merged_is_as_near_to_the_truth(family: str, method: str) -> None:
    """The truth: the float64 model with the same rounded weights. The weights' rounding costs what a rounding costs."""
    model = build(family).bfloat16()
    inputs = FAMILIES[family].inputs(2)
    rules = MIXED if method == "mixed" else METHODS[method]
    tuned = tuned_on(model, ((), in_dtype(inputs, torch.bfloat16)), rules, dtype=torch.bfloat16)
    before = bits(tuned)
    exact = copy.deepcopy(tuned).double()
    truth = outputs(exact, **in_dtype(in_dtype(inputs, torch.bfloat16), torch.float64))
    unmerged = error(outputs(tuned, **in_dtype(inputs, torch.bfloat16)), truth)
    merged = error(outputs(tuned.merge(), **in_dtype(inputs, torch.bfloat16)), truth)
    print(f"{family} {method}: merged {merged:.1e}, unmerged {unmerged:.1e}")
    assert merged <= 2 * unmerged + 4 * torch.finfo(torch.bfloat16).eps
    assert same_bits(bits(tuned.unmerge()), before)


def in_dtype(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


# ---- the weights themselves ------------------------------------------------------------------------------------------


def test_the_weights_are_those_of_the_papers_in_the_plain_model() -> None:
    """Fused qkv of a ViT: ``W + B A``. What comes out fits the plain model."""
    model = awake(build("vit")).double()
    inputs = in_dtype(FAMILIES["vit"].inputs(2), torch.float64)
    rules = {"rules": [{"at": "mha", "on": ["q_proj"], "insert": {"lora": {"rank": 3, "alpha": 6}}}]}
    tuned = tuned_on(model, ((), inputs), rules, dtype=torch.float64)
    state = bits(tuned)
    expected = outputs(tuned, **inputs)
    plain = copy.deepcopy(model)
    plain.load_state_dict(tuned.merge().state_dict())
    assert error(outputs(plain, **inputs), expected) <= 1e-12
    for block in ("blocks.0", "blocks.1"):
        (path,) = {name.rpartition(".")[0] for name in state if name.startswith(block) and "tuners" in name}
        by_hand = state[f"{block}.attn.qkv.weight"] + 2 * state[f"{path}.B"] @ state[f"{path}.A"]
        torch.testing.assert_close(plain.state_dict()[f"{block}.attn.qkv.weight"], by_hand, rtol=1e-14, atol=1e-14)


def test_scales_and_shifts_go_into_convolutions_and_norms() -> None:
    """``s W`` and ``s b + t``: depthwise and strided convolutions of a ConvNeXt, its norms and linear maps."""
    model = awake(build("convnext")).double()
    inputs = in_dtype(FAMILIES["convnext"].inputs(2), torch.float64)
    tuned = tuned_on(model, ((), inputs), "ssf", dtype=torch.float64)
    state, expected = bits(tuned), outputs(tuned, **inputs)
    plain = copy.deepcopy(model)
    plain.load_state_dict(tuned.merge().state_dict())
    assert error(outputs(plain, **inputs), expected) <= 1e-12
    (path,) = {name.rpartition(".")[0] for name in state if name.startswith("stages.0.blocks.0") and "conv" in name
               and "tuners" in name}  # fmt: skip
    depthwise = "stages.0.blocks.0.conv_dw"
    scale, shift = state[f"{path}.scale"], state[f"{path}.shift"]
    torch.testing.assert_close(
        plain.state_dict()[f"{depthwise}.weight"], state[f"{depthwise}.weight"] * scale[:, None, None, None]
    )
    torch.testing.assert_close(plain.state_dict()[f"{depthwise}.bias"], state[f"{depthwise}.bias"] * scale + shift)


def test_a_tied_weight_is_parted() -> None:
    """BERT's decoder is its embedding: the tuner is in the decoder alone."""
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model = awake(transformers.BertForMaskedLM(config)).double()
    inputs = FAMILIES["bert"].inputs(2)
    tuned = tuned_on(model, ((), inputs), LINEAR, dtype=torch.float64)
    before, expected = bits(tuned), outputs(tuned, **inputs)
    assert error(outputs(tuned.merge(), **inputs), expected) <= 1e-12
    state = bits(tuned)
    embedding = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(state[embedding], before[embedding])
    assert not torch.equal(state["cls.predictions.decoder.weight"], before[embedding])
    assert same_bits(bits(tuned.unmerge()), before)
    assert tuned.get_parameter(embedding) is tuned.get_parameter("cls.predictions.decoder.weight")


def test_a_weight_that_is_stored_the_other_way_round() -> None:
    """GPT-2 keeps its linear maps as D_in x D."""
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=16, use_cache=False)
    model = awake(transformers.GPT2Model(config)).double()
    inputs = {"input_ids": torch.arange(12).view(2, 6)}
    tuned = tuned_on(model, ((), inputs), LINEAR, dtype=torch.float64)
    expected = outputs(tuned, **inputs)
    assert error(outputs(tuned.merge(), **inputs), expected) <= 1e-12
    assert not tuners(tuned)


@pytest.mark.parametrize(("insert", "stays"), [("lora", 0), ("bitfit", 2)])
def test_a_computed_bias_stays_computed(insert: str, stays: int) -> None:
    """BEiT puts the bias of its fused projection together: products go into the weight, a change of the bias can't."""
    model = awake(timm.create_model(
        "beit_base_patch16_224", img_size=32, embed_dim=24, depth=2, num_heads=2, num_classes=3
    )).double()  # fmt: skip
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    rules = {"train": ["tuners"], "rules": [{"at": "mha", "on": ["q_proj", "out_proj"], "insert": insert}]}
    tuned = tuned_on(model, (x,), rules, dtype=torch.float64)
    expected = outputs(tuned, x)
    assert error(outputs(tuned.merge(), x), expected) <= 1e-12
    assert len({name.rpartition(".")[0] for name in tuners(tuned)}) == stays
    assert ("bias is computed" in str(tuned.report())) == bool(stays)


# ---- any mixture -----------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """One operation of every kind, by module and by operator, with a bias and without."""

    def __init__(self, bias: bool, groups: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(8)
        self.mixer = nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=bias)
        self.group = nn.GroupNorm(2, 8)
        self.point = nn.Conv2d(8, 8, 1, bias=bias)
        self.token_norm = nn.LayerNorm(8, bias=bias)
        self.fc = nn.Linear(8, 12, bias=bias)
        self.weight = nn.Parameter(torch.randn(8, 12))
        self.own_bias = nn.Parameter(torch.randn(8)) if bias else None
        self.shared = nn.Linear(8, 8, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.group(self.mixer(x)))
        x = torch.relu(self.point(x)).flatten(2).mT
        x = torch.relu(self.fc(self.token_norm(x)))
        x = torch.relu(F.linear(x, self.weight, self.own_bias))
        return self.shared(torch.relu(self.shared(x)))


INSERTS: list[dict[str, Any]] = [
    {"at": "linear", "insert": {"lora": {"rank": 2}}},
    {"at": "linear", "reads": "output", "insert": {"lora": {"rank": 2}}},
    {"at": "linear", "reads": "output", "insert": "bitfit"},
    {"at": "convolution", "reads": "output", "insert": "bitfit"},
    {"at": "linear", "reads": "output", "insert": "ssf"},
    {"at": "norm", "reads": "output", "insert": "ssf"},
    {"at": "convolution", "reads": "output", "insert": "ssf"},
    {"at": "linear", "reads": "output", "insert": {"res_adapter": {"dim": 2}}},
    {"at": "norm", "reads": "output", "insert": {"res_adapter": {"dim": 2}}},
]


@given(
    rules=st.lists(st.sampled_from(INSERTS), min_size=1, max_size=4),
    bias=st.booleans(),
    groups=st.sampled_from([1, 2, 8]),
    form=st.sampled_from(["unbound", "original"]),
)
@settings(max_examples=examples(40, 400))
def test_any_mixture(rules: list[dict[str, Any]], bias: bool, groups: int, form: str) -> None:
    """Tuners that can't go into weights, and those that would be heard by them, stay beside."""
    torch.manual_seed(0)
    model = Net(bias, groups).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    try:
        tuned = tuned_on(model, (x,), {"train": ["tuners"], "rules": rules}, dtype=torch.float64, form=form)
    except (fxtune.RuleError, fxtune.PlanError):  # a product that reads the output, or two where one is a layer behind
        assert form == "original" and (INSERTS[1] in rules or len(rules) > 1)
        return
    before, expected = bits(tuned), outputs(tuned, x)
    mergeable = [rule for rule in rules if "res_adapter" not in str(rule) and rule != INSERTS[1]]
    try:
        tuned.merge()
    except fxtune.PlanError as refusal:
        assert "none of the tuners" in str(refusal)
        assert len(mergeable) < len(rules)
    assert error(outputs(tuned, x), expected) <= 1e-12
    if len(mergeable) == len(rules) and bias:  # all but those of the layer that is called twice
        assert len({name.rpartition(".")[0] for name in tuners(tuned)}) <= 2 * len(rules)
    if tuned.state_dict().keys() != before.keys():
        tuned.unmerge()
    assert same_bits(bits(tuned), before)


# ---- life while merged -----------------------------------------------------------------------------------------------


@pytest.fixture
def vit() -> tuple[TunedModel, dict[str, Any], list[Tensor]]:
    model, inputs = awake(build("vit")).double(), in_dtype(FAMILIES["vit"].inputs(2), torch.float64)
    tuned = tuned_on(model, ((), inputs), ["lora", "single_adapter_ffn"], dtype=torch.float64)
    return tuned, inputs, outputs(tuned, **inputs)


Vit = tuple[TunedModel, dict[str, Any], list[Tensor]]


def test_what_cannot_go_stays_and_the_report_tells(vit: Vit) -> None:
    tuned, inputs, expected = vit
    adapters = [name for name in tuners(tuned) if "res_adapter" in name]
    objects = {name: tuned.get_parameter(name) for name in adapters}
    tuned.merge()
    assert tuners(tuned) == adapters
    assert all(tuned.get_parameter(name) is weight for name, weight in objects.items())
    report = str(tuned.report())
    assert "2 tuners are in the weights" in report and "res_adapter is no change of weights" in report
    assert error(outputs(tuned, **inputs), expected) <= 1e-12


def test_what_trains_while_merged_has_trained(vit: Vit) -> None:
    tuned, inputs, _ = vit
    trained = [name for name in tuned.trainable if "lora" not in name]
    tuned.merge()
    assert tuned.trainable == trained
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.1)
    tuned.train()
    tuned(**inputs).square().sum().backward()
    optimizer.step()
    moved = {name: tuned.get_parameter(name).detach().clone() for name in trained}
    tuned.unmerge()
    assert tuned.training
    assert all(torch.equal(tuned.get_parameter(name), weight) for name, weight in moved.items())


def test_other_inputs_copies_pickles_and_casts(vit: Vit) -> None:
    tuned, inputs, expected = vit
    more = in_dtype(FAMILIES["vit"].inputs(3), torch.float64)
    wanted = outputs(tuned, **more)
    tuned.merge()
    assert error(outputs(tuned, **more), wanted) <= 1e-12
    for other in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
        assert error(outputs(other, **inputs), expected) <= 1e-12
        assert all(map(torch.equal, outputs(other.unmerge(), **inputs), expected))
        assert not any(
            p.data_ptr() == q.data_ptr() for p, q in zip(other.parameters(), tuned.parameters(), strict=False)
        )
    tuned.float()
    assert {p.dtype for p in tuned.unmerge().parameters()} == {torch.float32}


def test_a_further_signature_is_merged_too() -> None:
    """Inputs that no graph takes are captured from the merged model."""
    model = awake(build("bert")).double()
    inputs = FAMILIES["bert"].inputs(2)
    tuned = tuned_on(model, ((), inputs), "lora", dtype=torch.float64)
    fewer = {"input_ids": inputs["input_ids"]}
    expected = outputs(tuned, **fewer)
    tuned.merge()
    assert error(outputs(tuned, **fewer), expected) <= 1e-12
    assert all(map(torch.equal, outputs(tuned.unmerge(), **fewer), expected))


def test_under_a_new_head() -> None:
    model, inputs = awake(build("vit")).double(), in_dtype(FAMILIES["vit"].inputs(2), torch.float64)
    tuned = tuned_on(model, ((), inputs), "bitfit", dtype=torch.float64, num_classes=7)
    expected = outputs(tuned, **inputs)
    assert error(outputs(tuned.merge(), **inputs), expected) <= 1e-12
    assert not tuners(tuned) and tuned.head.out_features == 7


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_refusals_change_nothing(vit: Vit, tmp_path: Path) -> None:
    tuned, inputs, expected = vit
    with pytest.raises(fxtune.PlanError, match="not merged"):
        tuned.unmerge()
    tuned.merge()
    with pytest.raises(fxtune.PlanError, match="merged already"):
        tuned.merge()
    with pytest.raises(fxtune.CheckpointError, match="in the weights"):
        tuned.save(tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert error(outputs(tuned, **inputs), expected) <= 1e-12


def test_a_model_without_such_tuners_is_refused_by_name() -> None:
    tuned = tuned_on(build("vit"), "vit", "tri_res")
    with pytest.raises(fxtune.PlanError, match="res_adapter is no change of weights"):
        tuned.merge()


def test_a_weight_that_is_read_twice_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(8, 8)
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(F.linear(x, self.embedding.weight)) + self.embedding.weight.sum(0)

    tuned = tuned_on(Twice(), (torch.randn(2, 5, 8),), LINEAR)
    x = torch.randn(2, 5, 8)
    expected = outputs(tuned, x)
    assert error(outputs(tuned.merge(), x), expected) <= 1e-6
    assert "`embedding.weight` is read at" in str(tuned.report())
    assert len(tuners(tuned)) == 2
