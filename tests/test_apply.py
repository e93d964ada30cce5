"""`apply` from end to end: weights, identity at the start, training, and Eq. 7 against hooks on the modules."""

import re
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxtune
from effort import examples
from families import FAMILIES, build
from fxtune import rules
from fxtune.matching import Sites
from fxtune.patterns import load_patterns
from fxtune.planning import plan
from fxtune.resources import rules_dir
from fxtune.rewriting import rewrite
from fxtune.source import load
from fxtune.tuners import resolve
from fxtune.view import view


def trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def rule(name: str, **changes: Any) -> dict[str, Any]:
    """A shipped rule file as a dict, with keys changed."""
    return {**load(rules_dir() / f"{name}.yaml").data, **changes}


# ---- Must show 3: weights ------------------------------------------------------------------------------------------


def meta(name: str, classes: int = 100) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, num_classes=classes)
    return model


@pytest.mark.parametrize(
    ("name", "rules", "settings", "weights"),
    [
        ("vit_base_patch16_224", "single_prompt_ffn", {}, 169_060),
        ("vit_base_patch16_224", "dual_res", {}, 482_644),
        ("vit_base_patch16_224", "tri_res", {}, 676_300),
        ("resnet101", "single_adapter_block", {"scale": "channel"}, 920_494),
    ],
)
def test_published_weight_counts(name: str, rules: str, settings: dict[str, Any], weights: int) -> None:
    assert trainable(fxtune.apply(meta(name), rules=rules, **settings)) == weights


def adapters(width: int, dim: int, count: int) -> int:
    """Two adapters with a channel scale in each of `count` blocks (definitions, section 3)."""
    return count * 2 * (2 * width * dim + dim + width + width)


@settings(max_examples=examples(8, 50))
@given(dim=st.integers(5, 100), depth=st.integers(1, 4), data=st.data())
def test_weights_follow_the_formula(dim: int, depth: int, data: st.DataObject) -> None:
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=24, depth=depth, num_heads=3, num_classes=7
    )
    chosen = set(range(depth))
    conditions: dict[str, Any] = {}
    if data.draw(st.booleans(), label="first k blocks"):
        first = data.draw(st.integers(1, depth))
        conditions["blocks"], chosen = f"first {first}", set(range(first))
    if data.draw(st.booleans(), label="blocks dropped"):
        drop = data.draw(st.sets(st.sampled_from(sorted(chosen)), max_size=len(chosen) - 1))
        conditions["drop"], chosen = sorted(drop), chosen - drop
    tuned = fxtune.apply(model, "dual_res", dim=dim, **conditions)
    assert trainable(tuned) == adapters(24, dim, len(chosen)) + 24 * 7 + 7
    report = fxtune.inspect(model, "dual_res", dim=dim, **conditions).report
    assert report is not None and report.trainable == trainable(tuned)


# ---- Must show 4: identity, training, strip ------------------------------------------------------------------------


def value(output: Any) -> torch.Tensor:
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return found


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_untrained_adapters_change_no_bit(name: str) -> None:
    model, inputs = build(name), FAMILIES[name].inputs(3)
    tuned = fxtune.apply(model, "tri_res").eval()
    with torch.no_grad():
        assert torch.equal(value(tuned(**inputs)), value(model(**inputs)))


@pytest.mark.parametrize("name", FAMILIES)
def test_thirty_steps_train_the_tuners_and_nothing_else(name: str) -> None:
    family, model = FAMILIES[name], build(name)
    before, flags = state(model), [(p.requires_grad) for p in model.parameters()]
    tuned = fxtune.apply(model, rule("tri_res", train=["tuners"]), seed=1).train()
    start = state(tuned)
    inputs = family.inputs(8)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = family.loss(tuned(**inputs), 8)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] <= 0.8 * losses[0], (losses[0], losses[-1])
    for key, tensor in tuned.state_dict().items():
        assert torch.equal(tensor, start[key]) == ("tuners" not in key.split(".")), key
    stripped = tuned.strip()
    assert stripped is model
    assert all(torch.equal(tensor, before[key]) for key, tensor in stripped.state_dict().items())
    assert list(stripped.state_dict()) == list(before)
    assert [p.requires_grad for p in stripped.parameters()] == flags
    assert not any(module.training for module in stripped.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_state_dict_keys(name: str) -> None:
    model = build(name)
    keys = list(fxtune.apply(model, "tri_res").state_dict())
    assert [key for key in keys if "tuners" not in key.split(".")] == list(model.state_dict())
    assert len(keys) > len(model.state_dict())


# ---- Eq. 7 against hooks on the original modules -------------------------------------------------------------------


def awaken(tuned: nn.Module, seed: int = 0) -> None:
    """Every tuner weight drawn anew, none of them zero."""
    made = torch.Generator().manual_seed(seed)
    for name, parameter in tuned.named_parameters():
        if "tuners" in name.split("."):
            parameter.data = torch.randn(parameter.shape, generator=made, dtype=torch.float64) * 0.3


def hooked(model: nn.Module, tuner_of: dict[str, nn.Module], reads_output: bool = False) -> nn.Module:
    """Eq. 7 written with hooks: the output of each named module, plus a tuner on what it was given."""
    for path, tuner in tuner_of.items():
        model.get_submodule(path).register_forward_hook(
            lambda module, args, output, tuner=tuner: output + tuner(output if reads_output else args[0])
        )
    return model


@pytest.mark.parametrize("rules", ["tri_res", "tri_res_prefix", "tri_res_prompt"])
def test_vit_equals_hooks(rules: str) -> None:
    model = build("vit").double()
    tuned = fxtune.apply(model, rules, dtype=torch.float64)
    awaken(tuned)
    tuners = {name: module for name, module in tuned.named_modules() if name.split(".")[-2:-1] == ["tuners"]}
    # Layer scale belongs to the operation, so the tuners of MHA and FFN join behind it.
    joins = {"mha": "ls1", "ffn": "ls2", "block": ""}
    reads = {"mha": "norm1", "ffn": "norm2", "block": ""}
    assert len(tuners) == 6
    read: dict[str, torch.Tensor] = {}
    for path, tuner in tuners.items():
        region, _, label = path.partition(".tuners.")
        kind = label.split("_")[0]
        source = f"{region}.{reads[kind]}".rstrip(".")
        target = f"{region}.{joins[kind]}".rstrip(".")
        if kind == "block":
            hooked(model, {target: tuner})
        else:
            model.get_submodule(source).register_forward_hook(
                lambda module, args, output, source=source: read.__setitem__(source, output)
            )
            model.get_submodule(target).register_forward_hook(
                lambda module, args, output, source=source, tuner=tuner: output + tuner(read[source])
            )
    x = FAMILIES["vit"].inputs(3)["x"].double()
    torch.testing.assert_close(tuned.eval()(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reads", ["input", "output"])
def test_resnet_blocks_equal_hooks(reads: str) -> None:
    model = build("resnet").double()
    rules = {"rules": [{"at": "block", "insert": "res_adapter", "reads": reads}]}
    tuned = fxtune.apply(model, rules, dtype=torch.float64)
    awaken(tuned)
    for path, module in tuned.named_modules():
        if path.endswith("tuners.block_res_adapter"):
            block = model.get_submodule(path.removesuffix(".tuners.block_res_adapter"))

            def join(block: nn.Module, args: Any, output: torch.Tensor, tuner: nn.Module = module) -> torch.Tensor:
                x = args[0]
                read = output if reads == "output" or x.shape != output.shape else x
                tokens = read.flatten(2).transpose(1, 2)
                return output + tuner(tokens).transpose(1, 2).reshape(output.shape)

            block.register_forward_hook(join)
    x = FAMILIES["resnet"].inputs(3)["x"].double()
    torch.testing.assert_close(tuned.eval()(x), model(x), rtol=1e-12, atol=1e-12)


# ---- Must show 5: in-place operations ------------------------------------------------------------------------------


class Overwriting(nn.Module):
    """A unit whose input is overwritten after the unit has read it."""

    def __init__(self, overwrite: Any) -> None:
        super().__init__()
        self.first, self.unit, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.overwrite = overwrite

    def forward(self, x: torch.Tensor, tuner: nn.Module | None = None) -> torch.Tensor:
        h = self.first(x)
        before = h.clone()
        y = torch.tanh(self.unit(h))
        if tuner is not None:
            y = y + tuner(before)
        self.overwrite(h)
        result: torch.Tensor = self.last(y * h)
        return result


OVERWRITES = {
    "relu_": lambda h: h.relu_(),
    "add_": lambda h: h.add_(1.0),
    "through a view": lambda h: h.view(-1, 6).mul_(2.0),
    "through a part": lambda h: h[..., :2].zero_(),
    "an in-place module": lambda h: nn.ReLU(inplace=True)(h),
}

UNIT = {"in": "h", "out": "y", "dataflow": "y = tanh(linear(h))\nz = mul(y, _)"}


@pytest.mark.parametrize("name", OVERWRITES)
def test_a_rule_over_an_in_place_operation(name: str) -> None:
    torch.manual_seed(0)
    # Frozen: overwriting what a trained linear map has read is an error in eager PyTorch, too.
    model = Overwriting(OVERWRITES[name]).double().requires_grad_(False)
    rules = {"patterns": {"unit": UNIT}, "rules": [{"at": "unit", "insert": "res_adapter", "expect": 1}]}
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    tuned = fxtune.apply(model, rules, example_inputs=(x.detach(),), dtype=torch.float64)
    awaken(tuned)
    (tuner,) = (module for path, module in tuned.named_modules() if path.endswith("tuners.unit_res_adapter"))
    ours, reference = tuned(x), model(x, tuner)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
    wanted = [x, *tuner.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad(ours.square().sum(), wanted),
        torch.autograd.grad(reference.square().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


class Shared(nn.Module):
    """A unit whose output is a view of a value that is overwritten through it, and read elsewhere afterwards."""

    def __init__(self, copies: bool) -> None:
        super().__init__()
        self.linear, self.copies = nn.Linear(6, 6), copies

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.linear(x))
        part = h[..., :3]
        if self.copies:
            part = part.clone()
        return part.mul_(2.0).sum(-1, keepdim=True) * h


@pytest.mark.parametrize("copies", [False, True])
def test_an_output_that_shares_overwritten_memory_is_refused(copies: bool) -> None:
    part = {"in": "x", "out": "y", "dataflow": "y = part(tanh(linear(x)))"}
    whole = {"in": "x", "out": "y", "dataflow": "y = tanh(linear(x))"}
    x = torch.randn(2, 5, 6)
    model = Shared(copies).requires_grad_(False)
    for pattern, refused in ((part, not copies), (whole, False)):
        rules = {"patterns": {"unit": pattern}, "rules": [{"at": "unit", "insert": "res_adapter", "reads": "output"}]}
        if refused:
            with pytest.raises(fxtune.PlanError, match="shares memory"):
                fxtune.apply(model, rules, example_inputs=(x,))
        else:
            assert torch.equal(fxtune.apply(model, rules, example_inputs=(x,))(x), model(x))


# ---- Must show 6: a user's own pattern and tuner -------------------------------------------------------------------

MIXER = """
fxtune: 1
name: mixer
patterns:
  mixer_block:
    about: A block of an MLP-Mixer, tokens first and then channels.
    in: x
    out: y
    dataflow: |
      tokens = linear(activation(linear(norm(x))))
      a = add(x, tokens)
      y = add(a, ffn_core(norm(a)))
rules:
  - at: mixer_block
    insert: {test_shift: {start: 0.25}}
    expect: 3
"""


@fxtune.tuner("test_shift")
class Shift(nn.Module):
    """Adds a learned number to every channel."""

    def __init__(self, place: fxtune.Placement, *, start: float = 0.0) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((place.width,), start))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shift.expand_as(x)


def test_a_users_own_pattern_and_tuner(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = timm.models.mlp_mixer.MlpMixer(num_classes=5, img_size=32, patch_size=8, num_blocks=3, embed_dim=24).eval()
    with pytest.raises(fxtune.MatchError, match="no rule of tri_res"):
        fxtune.apply(model, rule("tri_res", rules=[{"at": "block", "insert": "res_adapter"}]))
    file = tmp_path / "mixer.yaml"
    file.write_text(MIXER)
    tuned = fxtune.apply(model, file).eval()
    assert len([name for name in tuned.state_dict() if name.endswith("tuners.mixer_block_test_shift.shift")]) == 3
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: output + 0.25)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(tuned(x), model(x))


# ---- Bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["resnet", "convnext"])
def test_rule_sets_that_would_go_on_the_model_are_named(family: str) -> None:
    model, inputs = build(family), FAMILIES[family].inputs(2)
    with pytest.raises(fxtune.MatchError, match="the model has no mha") as caught:
        fxtune.apply(model, "prefix", example_inputs=((), inputs))
    (listed,) = re.findall(r"rule sets for what it has: (.*); or", str(caught.value))
    named = listed.split(", ")
    assert {"lora", "ssf", "single_adapter_block"} <= set(named) and "vpt_deep" not in named
    for name in named:
        assert fxtune.apply(model, name, example_inputs=((), inputs)).trainable


def test_a_shortfall_lists_the_near_misses() -> None:
    model = build("vit")
    pattern = {"in": "x", "out": "y", "dataflow": "y = linear(relu(linear(x)))"}
    rules = {"patterns": {"relu_ffn": pattern}, "rules": [{"at": "relu_ffn", "insert": "res_adapter", "expect": 2}]}
    with pytest.raises(fxtune.MatchError) as error:
        fxtune.apply(model, rules)
    assert "matched 0, and expects 2 sites" in str(error.value)


@pytest.mark.parametrize(
    ("conditions", "told"),
    [
        ({"blocks": "0..2"}, "names block 2, and there are 2"),
        ({"blocks": [5]}, "names block 5"),
        ({"drop": [2]}, "`drop: [2]` names block 2"),
        ({"blocks": "first 3"}, "names block 2"),
        ({"stages": "1"}, "names stage 1, and there are 1"),
    ],
    ids=str,
)
def test_blocks_that_do_not_exist_are_an_error(conditions: dict[str, Any], told: str) -> None:
    with pytest.raises(fxtune.MatchError, match="names what the model does not have") as error:
        fxtune.apply(build("vit"), "tri_res", **conditions)
    assert told in str(error.value)
    assert len(fxtune.apply(build("vit"), "tri_res", blocks="1..").report().outcomes[0].sites) == 1


def test_a_family_without_attention_reports_and_skips() -> None:
    model = build("resnet")
    report = str(fxtune.apply(model, "tri_res").report())
    assert "the model has no mha" in report and "the model has no ffn" in report
    with pytest.raises(fxtune.MatchError, match="expects at least one site"):
        fxtune.apply(model, {"rules": [{"at": "mha", "insert": "res_adapter", "required": True}]})


def test_train_head_without_a_head_names_the_parameter() -> None:
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
    )
    model = transformers.BertModel(config)
    with pytest.raises(fxtune.PlanError, match="head="):
        fxtune.apply(model, rule("tri_res", train=["tuners", "head"]))
    assert fxtune.apply(model, "tri_res").report() is not None


def test_unknown_names_give_the_closest() -> None:
    model = build("vit")
    with pytest.raises(fxtune.RuleError, match="tri_res"):
        fxtune.apply(model, "tri_rse")
    with pytest.raises(fxtune.PatternError, match="closest: mha"):
        fxtune.apply(model, {"rules": [{"at": "mah", "insert": "res_adapter"}]})
    with pytest.raises(fxtune.RuleError, match="res_adapter"):
        fxtune.apply(model, {"rules": [{"at": "mha", "insert": "res_adaptor"}]})
    with pytest.raises(fxtune.RuleError, match="dim"):
        fxtune.apply(model, "tri_res", dmi=4)
    with pytest.raises(fxtune.PlanError, match=r"nearest: head"):
        fxtune.apply(model, "tri_res", head="haed")
    with pytest.raises(fxtune.PlanError, match=r"nearest names are blocks"):
        fxtune.apply(model, rule("tri_res", train=["blocks.0.norm1.bais"]))


def test_a_failure_leaves_the_model_as_it_was() -> None:
    model = build("resnet").train()
    model.conv1.eval()
    before, modes = state(model), [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    for bad in ({"rules": [{"at": "mha", "insert": "res_adapter", "required": True}]}, rule("tri_res", train=["no.*"])):
        with pytest.raises(fxtune.FxtuneError):
            fxtune.apply(model, bad)
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_patch_can_be_read_before_it_is_made() -> None:
    model = build("vit")
    inspection = fxtune.inspect(model, "tri_res", dim=3)
    assert str(inspection.patch).splitlines()[0] == "blocks.0: ls1 += res_adapter(dim=3, scale=channel)(norm1)"
    assert len(str(inspection.patch).splitlines()) == 6
    assert not any("tuners" in name for name in model.state_dict())


def test_a_tuner_that_cannot_be_built_leaves_the_graphs_as_they_were() -> None:
    graph = fxtune.capture(build("vit"))
    code, keys = graph.code, list(graph.state_dict())
    insertion = {"rules": [{"at": "ffn", "insert": "res_adapter"}, {"at": "block", "insert": "res_prefix"}]}
    sites = Sites(view(graph), load_patterns())
    patch = plan(graph, sites, resolve(rules.load(insertion)))
    broken = replace(patch.insertions[-1], place=fxtune.Placement(width=32, heads=5, kind="block"))
    halves = replace(patch, rules=(patch.rules[0], replace(patch.rules[1], insertions=(broken,))))
    with pytest.raises(fxtune.RuleError, match="heads"):
        rewrite(graph, halves)
    assert (graph.code, list(graph.state_dict())) == (code, keys)
    assert "tuners" not in graph.get_submodule("blocks.0").code


def test_every_shipped_rule_file_applies() -> None:
    for rule_set in rules.shipped():
        tuned = fxtune.apply(build("vit"), rule_set.name)
        assert tuned.trainable, rule_set.name
        inserts = bool(rule_set.rules or rule_set.bypass)
        assert any("tuners" in name.split(".") for name in tuned.state_dict()) == inserts, rule_set.name


def test_a_block_ends_where_its_module_does() -> None:
    """The dropout of a classifier behind the last block is not the block's."""
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    tuned = fxtune.apply(transformers.BertForTokenClassification(config), "single_adapter_block")
    keys = [key for key in tuned.state_dict() if key.endswith("tuners.block_res_adapter.down.bias")]
    assert [key.partition(".tuners")[0] for key in keys] == [f"bert.encoder.layer.{i}" for i in range(2)]


@pytest.mark.parametrize("named", [["first", "second"], ["second"]])
@pytest.mark.parametrize("form", ["unbound", "original"])
def test_a_module_under_two_names_takes_its_tuner_once(form: Any, named: list[str]) -> None:
    """It is one graph, called twice. Whichever of its names a rule means, both calls are tuned."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
            self.second = self.first

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    rule = {"at": "linear", "insert": {"lora": {"rank": 2}}}
    each = [{**rule, "where": {"path": f"{name}.*"}} for name in named]
    for several in ([rule], each):
        model, x = Net(), torch.randn(2, 3, 8)
        tuned = fxtune.apply(model, {"rules": several}, example_inputs=(x,), form=form)
        own = {name: p for name, p in tuned.named_parameters() if "tuners" in name.split(".")}
        assert len(own) == 2 * len(several) and all(name.startswith("first.tuners.") for name in own)
        assert tuned.report().outcomes[0].weights == 2 * 2 * 8
        with torch.no_grad():
            for weight in own.values():
                weight.normal_()
            a, b = (
                torch.cat([p for name, p in own.items() if name.endswith(end)], axis)
                for end, axis in (("A", 0), ("B", 1))
            )
            weight, bias = model.first[0].weight + b @ a, model.first[0].bias
            expected = torch.tanh(torch.tanh(x @ weight.T + bias) @ weight.T + bias)
            torch.testing.assert_close(tuned(x), expected)


def test_tuners_read_whole_sequences() -> None:
    """Attention that puts the sequence first inside gets its tuner outside, on B x N x D."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    tuned = fxtune.apply(model, "single_adapter_mha", example_inputs=(torch.randn(2, 5, 16),))
    shapes: list[torch.Size] = []
    (tuner,) = (module for name, module in tuned.named_modules() if name.endswith("tuners.mha_res_adapter"))
    tuner.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
    tuned(torch.randn(3, 7, 16))
    assert shapes == [(3, 7, 16)]


def test_equal_sizes_written_differently_are_equal() -> None:
    """Behind an upsampler a symbolic size is written in two ways; the tuner reads the input all the same."""
    outcomes = fxtune.inspect(build("unet"), "single_adapter_mha").report
    assert outcomes is not None and outcomes.outcomes[0].notes == ()


def test_fixed_weights_of_a_tuner_stay_fixed() -> None:
    tuned = fxtune.apply(build("vit"), {"train": ["tuners"], "rules": [{"at": "ffn", "insert": "test_fixed"}]})
    assert {name.rpartition(".")[2] for name in tuned.trainable} == {"gain"}


@fxtune.tuner("test_fixed")
class Fixed(nn.Module):
    """A fixed random map with a learned gain."""

    def __init__(self, place: fxtune.Placement) -> None:
        super().__init__()
        self.register_parameter("map", nn.Parameter(torch.randn(place.width, place.width), requires_grad=False))
        self.gain = nn.Parameter(torch.zeros(place.width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.map * self.gain


@pytest.mark.parametrize(
    "wrong", [{"batchnorm": "freeze"}, {"num_classes": "5"}, {"dtype": torch.int8}, {"model": None}, {"num_classes": 0}]
)
def test_arguments_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(fxtune.PlanError, match="cannot take this argument"):
        fxtune.apply(**{"model": build("vit"), "rules": "tri_res", **wrong})
