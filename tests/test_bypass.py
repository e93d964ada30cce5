"""A detached bypass: its numbers against Eq. 8 by hand, its detachment, its modes, and what it refuses."""

from __future__ import annotations

import copy
import functools
import pickle
import re
from typing import Any

import pytest
import timm
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, fx, nn

import bypass_reference as reference
import fxtune
from effort import examples
from families import FAMILIES, build
from fxtune import cards
from fxtune.matching import Sites
from fxtune.patterns import load_patterns
from fxtune.planning import plan
from fxtune.rewriting import rewrite
from fxtune.rules import load
from fxtune.tuners import resolve
from fxtune.view import view

VARIANTS = {"res_bypass": 2, "res_bypass_horizontal": 1, "res_bypass_vertical": 1, "res_bypass_none": 0}
"""The shipped rule files, and how many tuners a level has."""


def inputs_of(family: str, batch: int = 2) -> dict[str, Any]:
    return FAMILIES[family].inputs(batch)


def bypass_of(tuned: nn.Module) -> nn.Module:
    (path,) = (path for path, _ in tuned.named_modules() if path.endswith("tuners.bypass"))
    return tuned.get_submodule(path)


def double(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}


def test_published_weights() -> None:
    """Two tuners, m = 10, with a head of 100 classes."""
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=100)
    tuned = fxtune.apply(model, "res_bypass")
    assert sum(weight.numel() for weight in tuned.parameters() if weight.requires_grad) == 464_224


# ---- Eq. 8 -----------------------------------------------------------------------------------------------------------


@st.composite
def drawn(draw: st.DrawFn) -> tuple[str, str, list[int], list[float], int]:
    family = draw(st.sampled_from(sorted(reference.BLOCKS)))
    levels = len(reference.BLOCKS[family])
    rules = draw(st.sampled_from(sorted(VARIANTS)))
    drop = draw(st.lists(st.integers(0, levels - 1), unique=True, max_size=levels)) if VARIANTS[rules] else []
    thetas = [-torch.inf, 0.0, torch.inf, 0.7]  # λ of 0, 1/2, 1 and something else
    return family, rules, drop, [draw(st.sampled_from(thetas)) for _ in range(levels)], draw(st.integers(0, 2**31))


@functools.cache
def captured(family: str) -> tuple[nn.Module, fx.GraphModule, Sites]:
    model = build(family).double()
    graph = fxtune.capture(model, double(inputs_of(family)))
    return model, graph, Sites(view(graph), load_patterns([]))


def spliced(family: str, rules: str, drop: list[int]) -> tuple[nn.Module, fx.GraphModule]:
    """The model, and its capture with a bypass, as `apply` makes it."""
    model, graph, sites = captured(family)
    rule_sets = resolve(load(rules), {"drop": drop} if drop else {})
    completed = [one.completed(**cards.bypass(model).model_dump()) for one in rule_sets]
    root = copy.deepcopy(graph)
    rewrite(root, plan(root, sites, completed, seed=0), dtype=torch.float64)
    return model, root.requires_grad_(False)


@given(case=drawn())
@settings(max_examples=examples(40, 400))
def test_the_spliced_graph_is_eq_8(case: tuple[str, str, list[int], list[float], int]) -> None:
    family, rules, drop, thetas, seed = case
    model, tuned = spliced(family, rules, drop)
    inputs = double(inputs_of(family, 3))
    parts = dict(bypass_of(tuned).requires_grad_(True).named_parameters())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in parts.values():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) / weight.shape[-1] ** 0.5)
        for level, theta in enumerate(thetas):
            parts[f"levels.{level}.mix.weight"].fill_(theta)
    kept = [level for level in range(len(thetas)) if level not in drop]
    having = {name.split(".")[1] for name in parts if "vertical" in name or "horizontal" in name}
    assert having == ({str(level) for level in kept} if VARIANTS[rules] else set())

    expected = reference.output_of(model, family, inputs, parts, gated=family == "unet")
    found = tuned(**inputs)
    assert reference.error(found, expected) <= 1e-12
    weights = [weight for name, weight in parts.items() if "mix" not in name]
    if not weights:
        return

    def gradients(output: Any) -> list[Tensor]:
        total = sum(x.square().sum() for x in reference.tensors(output) if x.requires_grad)
        grads = torch.autograd.grad(total, weights, allow_unused=True)
        return [torch.zeros_like(w) if g is None else g for g, w in zip(grads, weights, strict=True)]

    found_grads, expected_grads = gradients(found), gradients(expected)
    largest = max(float(g.abs().max()) for g in expected_grads)
    for g, e in zip(found_grads, expected_grads, strict=True):
        assert float((g - e).abs().max()) <= 1e-10 * largest


@pytest.mark.parametrize("family", ["vit", "bert"])
def test_the_read_token_alone_is_computed(family: str) -> None:
    """A head that reads one token: the bypass has that token of every stem, and gives what it gives for all."""
    model, whole = spliced(family, "res_bypass", [])
    inputs = double(inputs_of(family, 3))
    tuned = fxtune.apply(model, "res_bypass", seed=0, dtype=torch.float64, example_inputs=inputs).eval()
    theirs, ours = (dict(bypass_of(each).requires_grad_(True).named_parameters()) for each in (whole, tuned))
    with torch.no_grad():
        for name, weight in ours.items():
            theirs[name].copy_(weight.copy_(torch.randn_like(weight) / weight.shape[-1] ** 0.5))
    seen: list[torch.Size] = []
    hook = bypass_of(tuned).register_forward_pre_hook(lambda _, args: seen.extend(x.shape for x in args))
    found, expected = tuned(**inputs), whole(**inputs)
    hook.remove()
    assert seen == [(3, 1, 32)] * 3, "it was given more than the token that is read"
    assert reference.error(found, expected) <= 1e-12
    gradients = [
        torch.autograd.grad(sum(x.square().sum() for x in reference.tensors(output)), list(weights.values()))
        for output, weights in ((found, ours), (expected, theirs))
    ]
    assert reference.error(*gradients) <= 1e-10
    assert "1 of" in str(tuned.report())


def test_stems_may_end_early() -> None:
    """Then the last level stands for the last Block's output, and later Blocks are not computed."""
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=4, embed_dim=24, num_heads=2, num_classes=3)
    tuned = fxtune.apply(model, {"bypass": {"stems": {"blocks": "0..1"}}}, seed=0).eval()
    graph = tuned.graph_module.get_submodule("blocks").graph
    assert {node.target for node in graph.nodes if node.op == "call_module"} == {"0", "1", "tuners.bypass"}
    x = torch.randn(2, 3, 32, 32)
    model.eval()
    x_0 = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    x_1 = model.blocks[0](x_0)
    mixed = (x_0 + x_1) / 4 + model.blocks[1](x_1) / 2
    assert torch.allclose(tuned(x), model.forward_head(model.norm(mixed)), atol=1e-6)


def test_it_runs_along_a_layer_that_is_shared() -> None:
    config = transformers.AlbertConfig(
        vocab_size=40,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
    )
    model = transformers.AlbertModel(config).eval()
    tuned = fxtune.apply(model, "res_bypass_none").eval()
    ids = torch.tensor([[1, 5, 7], [2, 3, 0]])
    stems = model(ids, output_hidden_states=True).hidden_states
    expected = stems[0] / 8 + stems[1] / 8 + stems[2] / 4 + stems[3] / 2
    assert torch.allclose(tuned(ids).last_hidden_state, expected, atol=1e-6)


# ---- detached --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_no_gradient_comes_into_the_trunk(family: str) -> None:
    """As the graph says, and as autograd finds, also when every weight asks for a gradient."""
    tuned = fxtune.apply(build(family), "res_bypass", seed=0)
    report = tuned.gradient_report()
    assert set(report.trained) == set(tuned.trainable) and not report.lost
    tuned.requires_grad_(True).train()
    FAMILIES[family].loss(tuned(**inputs_of(family)), 2).backward()
    reached = {name for name, weight in tuned.named_parameters() if weight.grad is not None}
    assert reached == {*report.trained, *report.passed}
    assert set(report.unreached).isdisjoint(reached) and len(report.unreached) > 10
    # The tail alone is passed through: the final norm or what is like it.
    inside = [name for name in report.passed if any(f"{path}." in name for path in reference.BLOCKS[family])]
    assert not inside


@pytest.mark.parametrize("rules", ["tri_res", "bitfit", {"train": ["all"]}], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_report_is_what_autograd_finds(rules: Any, family: str) -> None:
    tuned = fxtune.apply(build(family), rules, seed=0)
    report = tuned.gradient_report()
    tuned.requires_grad_(True).train()
    FAMILIES[family].loss(tuned(**inputs_of(family)), 2).backward()
    reached = {name for name, weight in tuned.named_parameters() if weight.grad is not None}
    assert reached == {*report.trained, *report.passed}


def test_a_weight_that_trains_in_vain_is_told() -> None:
    tuned = fxtune.apply(build("vit"), "res_bypass", seed=0)
    tuned.get_parameter("blocks.0.mlp.fc1.bias").requires_grad_(True)
    assert tuned.gradient_report().lost == ("blocks.0.mlp.fc1.bias",)
    assert "blocks.0.mlp.fc1.bias" in str(tuned.gradient_report())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trunk_saves_nothing_for_backward(family: str) -> None:
    """Neither with inputs that ask for a gradient: what is kept lies in the bypass and the tail."""
    tuned = fxtune.apply(build(family), "res_bypass", seed=0).train()
    inputs = {name: x.clone().requires_grad_() if x.is_floating_point() else x for name, x in inputs_of(family).items()}
    trunk = {id(weight) for name, weight in tuned.named_parameters() if name in tuned.gradient_report().unreached}
    shapes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: shapes.append(id(x)) or x, lambda x: x):
        FAMILIES[family].loss(tuned(**inputs), 2).backward()
    assert shapes and trunk.isdisjoint(shapes)
    floating = [x for x in inputs.values() if x.is_floating_point()]
    assert all(x.grad is None for x in floating)


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_training_lowers_the_loss(family: str) -> None:
    tuned = fxtune.apply(build(family), {"train": ["tuners"], "bypass": _both(family)}, seed=0).train()
    before = {name: weight.detach().clone() for name, weight in tuned.named_parameters()}
    statistics = {name: buffer.clone() for name, buffer in tuned.named_buffers()}
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=3e-2)
    losses: list[float] = []
    for _ in range(31):
        optimizer.zero_grad()
        loss = FAMILIES[family].loss(tuned(**inputs_of(family, 4)), 4)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[30] <= 0.8 * losses[0]
    moved = {name for name, weight in tuned.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == set(tuned.trainable) and all("tuners.bypass" in name for name in moved)
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in tuned.named_buffers())


def _both(family: str) -> dict[str, Any]:
    return {"horizontal": {"res_adapter": {"dim": 10}}, "vertical": {"res_adapter": {"dim": 10}}}


def test_an_untrained_bypass_leaves_the_unet_as_it_is() -> None:
    model = build("unet")
    tuned = fxtune.apply(model, "res_bypass", seed=0).eval()
    inputs = inputs_of("unet")
    assert torch.equal(tuned(**inputs).sample, model(**inputs).sample)
    with torch.no_grad():
        bypass_of(tuned).get_parameter("gate.weight").fill_(0.5)
    assert not torch.equal(tuned(**inputs).sample, model(**inputs).sample)


# ---- modes, copies, compilers ----------------------------------------------------------------------------------------


def dropping() -> VisionTransformer:
    return VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3,
        proj_drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.5, pos_drop_rate=0.5, drop_rate=0.5,
    )  # fmt: skip


def test_the_trunk_is_always_in_evaluation_mode() -> None:
    tuned = fxtune.apply(dropping(), "res_bypass", seed=0).train()
    x = torch.randn(4, 3, 16, 16)
    seen: list[Tensor] = []
    tuned.get_submodule("head_drop").register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    a, b = tuned(x), tuned(x)
    assert torch.equal(*seen), "something in the trunk was dropped"
    assert not torch.equal(a, b), "the tail's dropout follows the mode"
    tuned.eval()
    assert torch.equal(tuned(x), tuned(x))


def test_functional_dropout_of_the_trunk_is_off() -> None:
    """Hugging Face's attention calls dropout with a probability that it chooses by mode."""
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.5,
    )  # fmt: skip
    tuned = fxtune.apply(transformers.BertModel(config), "res_bypass", seed=0).train()
    ids = torch.tensor([[1, 5, 7], [2, 3, 0]])
    assert torch.equal(tuned(ids).last_hidden_state, tuned(ids).last_hidden_state)


def test_copies_and_pickles_compute_the_same() -> None:
    tuned = fxtune.apply(dropping(), "res_bypass", seed=0).train()
    x = torch.randn(4, 3, 16, 16)
    for other in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
        other.train()
        other.get_submodule("head_drop").eval()
        reference_ = copy.deepcopy(tuned)
        reference_.get_submodule("head_drop").eval()
        assert torch.equal(other(x), reference_(x))
        assert list(other.state_dict()) == list(tuned.state_dict())


def test_other_inputs_use_the_same_bypass() -> None:
    """Another optional input makes a further capture, with the same bypass in it."""
    model = build("bert")
    tuned = fxtune.apply(model, "res_bypass", seed=0).eval()
    ids = inputs_of("bert")["input_ids"]
    assert torch.equal(tuned(input_ids=ids).logits, tuned(input_ids=ids, token_type_ids=torch.zeros_like(ids)).logits)


def test_strip_gives_the_original_back() -> None:
    model = build("convnext")
    x = inputs_of("convnext")["x"]
    expected = model(x)
    tuned = fxtune.apply(model, "res_bypass", seed=0)
    tuned.train()
    tuned(x)
    assert tuned.strip() is model and torch.equal(model.eval()(x), expected)


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_it_compiles_in_one_graph(family: str) -> None:
    tuned = fxtune.apply(build(family), "res_bypass", seed=0).train()
    inputs = inputs_of(family, 3)
    compiled = torch.compile(tuned, fullgraph=True, backend="aot_eager")
    loss = FAMILIES[family].loss
    weights = [weight for weight in tuned.parameters() if weight.requires_grad]
    expected = torch.autograd.grad(loss(tuned(**inputs), 3), weights)
    found = torch.autograd.grad(loss(compiled(**inputs), 3), weights)
    assert reference.error(found, expected) <= 1e-5


def test_it_runs_under_autocast_and_in_bfloat16() -> None:
    tuned = fxtune.apply(build("vit"), "res_bypass", seed=0).train()
    x = inputs_of("vit")["x"]
    plain = tuned(x)
    with torch.autocast("cpu", torch.bfloat16):
        cast = tuned(x)
    cast.float().sum().backward()
    assert (cast.float() - plain).abs().max() < 0.1 * plain.abs().max()
    half = fxtune.apply(build("vit").bfloat16(), "res_bypass", seed=0)
    assert half(x.bfloat16()).dtype is torch.bfloat16


def test_blocks_may_be_checkpointed() -> None:
    tuned = fxtune.apply(build("vit"), "res_bypass", seed=0).train()
    x = inputs_of("vit")["x"]
    weights = [weight for weight in tuned.parameters() if weight.requires_grad]
    expected = torch.autograd.grad(tuned(x).sum(), weights)
    tuned.set_grad_checkpointing()
    found = torch.autograd.grad(tuned(x).sum(), weights)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_seed_draws_the_weights() -> None:
    def weights(seed: int) -> list[Tensor]:
        return list(bypass_of(fxtune.apply(build("vit"), "res_bypass", seed=seed)).parameters())

    assert all(torch.equal(a, b) for a, b in zip(weights(1), weights(1), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(weights(1), weights(2), strict=True))


# ---- reports ---------------------------------------------------------------------------------------------------------


def test_report_and_inspection_tell_it() -> None:
    model = build("vit")
    tuned = fxtune.apply(model, "res_bypass", seed=0, dim=5)
    added = sum(weight.numel() for weight in bypass_of(tuned).parameters())
    (outcome,) = tuned.report().outcomes
    assert outcome.rule == "bypass along block: horizontal res_adapter(dim=5), vertical res_adapter(dim=5)"
    assert outcome.sites == ("blocks.0", "blocks.1") and outcome.weights == added
    found = fxtune.inspect(model, "res_bypass", dim=5)
    assert found.report is not None and found.report.outcomes == (outcome,)
    assert "bypass along block" in str(found.patch) and "is replaced by" in str(found.patch)


# ---- what is refused -------------------------------------------------------------------------------------------------


class Rectangles(nn.Module):
    """A map, then a sequence: two stems of different rank."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 1), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.one(x))
        x = x.flatten(2).mT
        return x + torch.tanh(self.two(x))


class Unread(nn.Module):
    """Its last unit's result is kept, and nothing that it returns comes from there."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("last", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        y = x + torch.tanh(self.one(x))
        z = y + torch.tanh(self.two(y))
        self.last.copy_(z.detach().mean((0, 1)))
        return y


UNIT = {"unit": {"in": "x", "out": "y", "dataflow": "y = add(x, tanh(linear(x)))"}}


@pytest.mark.parametrize(
    ("rules", "settings", "error", "told"),
    [
        ({"bypass": {"along": "nothing_like_this"}}, {}, fxtune.PatternError, "nothing_like_this"),
        ({"bypass": {"along": "conv_mixer"}}, {}, fxtune.MatchError, "has no stem"),
        ({"bypass": {"stems": {"blocks": "7.."}}}, {}, fxtune.MatchError, "names block 7, and there are 2"),
        ({"bypass": {"where": {"drop": [2]}}}, {}, fxtune.MatchError, "names block 2, and there are 2"),
        ({"bypass": {"stems": {"path": "head*"}}}, {}, fxtune.MatchError, "does not fit 'head*'"),
        ({"bypass": {"along": "mha"}}, {}, fxtune.PlanError, "flow back into the trunk"),
        ({"bypass": {"along": "ffn"}}, {}, fxtune.PlanError, "flow back into the trunk"),
        ("res_bypass", {"form": "original"}, fxtune.RuleError, "never tangled"),
        (["res_bypass", "res_bypass_none"], {}, fxtune.PlanError, "takes one bypass"),
        (["res_bypass", "lora"], {}, fxtune.PlanError, "lora cannot train at `blocks.0.attn.qkv`"),
        ({"bypass": {}, "train": ["blocks.1.*"]}, {}, fxtune.PlanError, "blocks.1.norm1.weight"),
        ({"bypass": {"horizontal": {"no_tuner": {}}}}, {}, fxtune.RuleError, "no_tuner"),
        ({"bypass": {"vertical": {"res_adapter": {"dim": 0}}}}, {}, fxtune.RuleError, "bypass.vertical.res_adapter"),
        ({"bypass": {"vertical": {"vpt": {"tokens": 3}}}}, {}, fxtune.FxtuneError, "vpt"),
        ({"bypass": {"splice": "glued"}}, {}, fxtune.SourceError, "splice"),
    ],
    ids=str,
)
def test_bad_rules_are_refused(rules: Any, settings: dict[str, Any], error: type[Exception], told: str) -> None:
    model = build("vit")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=re.escape(told)):
        fxtune.apply(model, rules, **settings)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_stem_of_another_rank_is_refused() -> None:
    rules = {"bypass": {"along": "unit"}, "patterns": UNIT, "train": ["tuners"]}
    with pytest.raises(fxtune.PlanError, match="cannot lead from one of these values to the next") as caught:
        fxtune.apply(Rectangles(), rules, example_inputs=(torch.randn(2, 4, 3, 3),))
    assert "on 4 axes" in str(caught.value) and "on 3 axes" in str(caught.value)


def test_no_tail_is_refused() -> None:
    rules = {"bypass": {"along": "unit"}, "patterns": UNIT, "train": ["tuners"]}
    with pytest.raises(fxtune.PlanError, match="no tail to be spliced into"):
        fxtune.apply(Unread(), rules, example_inputs=(torch.randn(3, 2, 4),))
