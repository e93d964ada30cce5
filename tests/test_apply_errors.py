"""What `apply` refuses, what it then says, and that a failure changes nothing."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import fxtune
from applying import rule, state
from families import FAMILIES, build
from fxtune import rules
from fxtune.matching import Sites
from fxtune.patterns import load_patterns
from fxtune.planning import plan
from fxtune.rewriting import rewrite
from fxtune.tuners import resolve
from fxtune.view import view


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
