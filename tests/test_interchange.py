"""LoRA between fxtune, PEFT and diffusers: the same outputs in each."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest
import torch
from diffusers.utils import convert_state_dict_to_diffusers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import nn

import fxtune
from adapters import (
    CONFIG,
    DIFFUSERS,
    WEIGHTS,
    close,
    digests,
    from_peft,
    in_peft,
    inputs_of,
    loaded,
    moved,
    output,
    plain,
)
from effort import examples
from fxtune.errors import CheckpointError
from fxtune.interchange.patterns import lookup, pattern_of
from fxtune.interchange.writing import targets

# PEFT still asks transformers under an old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

READ: dict[str, dict[str, Any]] = {
    "bert": {
        "target_modules": ["query", "value", "dense"],
        "r": 3,
        "lora_alpha": 7,
        "rank_pattern": {"layer.1.attention.self.query": 5, r"layer\.[0-9]+\.output\.dense": 2},
        "alpha_pattern": {"value": 2.5, "^bert.pooler.dense": 11},
        "modules_to_save": ["classifier"],
    },
    "gpt2": {"target_modules": ["c_attn", "c_proj", "c_fc"], "r": 5, "use_rslora": True, "fan_in_fan_out": True},
    "llama": {"target_modules": "all-linear", "r": 2, "lora_alpha": 16},
    "vit": {"target_modules": r".*\.(qkv|attn\.proj|fc1)", "r": 4, "modules_to_save": ["head"], "lora_dropout": 0.1},
    "unet": {
        "target_modules": ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv_shortcut", "time_emb_proj", "conv1"],
        "r": 4,
        "lora_alpha": 2,
        "init_lora_weights": "gaussian",
    },
    "resnet": {"target_modules": r".*conv\d|.*downsample\.0|fc", "r": 3, "lora_alpha": 5},
    "convnext": {"target_modules": r".*\.downsample\.1|.*fc1", "r": 2, "modules_to_save": ["head.fc"]},
}


@pytest.mark.parametrize("family", READ)
def test_peft_and_back(family: str, tmp_path: Path) -> None:
    """PEFT's checkpoint gives the same outputs here, and trained on here the same there; it is saved as any other."""
    model = plain(family)
    before = digests(model)
    theirs = in_peft(model, **READ[family])
    theirs.save_pretrained(tmp_path / "theirs")

    tuned = loaded(model, tmp_path / "theirs", family)
    assert close(output(tuned, family), output(theirs, family))
    assert not torch.allclose(output(theirs, family), output(model, family), atol=1e-2)
    assert sum(p.numel() for p in tuned.parameters() if p.requires_grad) == theirs.get_nb_trainable_parameters()[0]

    moved(tuned, 2).save(tmp_path / "ours", format="peft")
    assert close(output(from_peft(model, tmp_path / "ours"), family), output(tuned, family))
    assert not close(output(tuned, family), output(theirs, family))

    tuned.save(tmp_path / "own")
    assert torch.equal(output(loaded(model, tmp_path / "own", family), family), output(tuned, family))
    assert digests(model) == before and tuned.strip() is model


WRITTEN: dict[str, Any] = {
    "bert": [
        {"name": "a", "rules": [{"at": "ffn", "on": ["h", "out"], "insert": {"lora": {"rank": 2, "alpha": 3.5}}}]}
    ],
    "vit": "lora",
    "resnet": "lora",
}


@pytest.mark.parametrize(
    ("family", "form"), [*((family, "unbound") for family in WRITTEN), ("vit", "original"), ("resnet", "original")]
)
def test_rules_of_ours_are_lora_in_peft(family: str, form: Any, tmp_path: Path) -> None:
    model = plain(family)
    tuned = fxtune.apply(model, WRITTEN[family], form=form, seed=0, example_inputs=((), inputs_of(family, 2)))
    moved(tuned).save(tmp_path, format="peft")
    assert close(output(from_peft(model, tmp_path), family), output(tuned, family))
    assert close(output(loaded(model, tmp_path, family), family), output(tuned, family))


@settings(max_examples=examples(3, 60), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_ranks_factors_and_places(data: st.DataObject, tmp_path: Path) -> None:
    model = plain("vit")
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    chosen = data.draw(st.lists(st.sampled_from(linear), min_size=1, unique=True))
    numbers = {"rank_pattern": st.integers(1, 4), "alpha_pattern": st.integers(1, 32) | st.floats(0.01, 100)}
    patterns = {name: data.draw(st.dictionaries(st.sampled_from(chosen), numbers[name])) for name in numbers}
    config = {"r": data.draw(st.integers(1, 4)), "lora_alpha": data.draw(st.integers(1, 64)), **patterns}
    theirs = in_peft(model, target_modules=chosen, use_rslora=data.draw(st.booleans()), **config)
    shutil.rmtree(tmp_path / "x", ignore_errors=True)
    theirs.save_pretrained(tmp_path / "x")
    tuned = fxtune.load(model, tmp_path / "x")
    assert close(output(tuned, "vit"), output(theirs, "vit"))
    tuned.save(tmp_path / "x", format="peft")
    assert close(output(from_peft(model, tmp_path / "x"), "vit"), output(theirs, "vit"))


def test_a_tied_output_embedding(tmp_path: Path) -> None:
    """PEFT writes the weight under its LoRA, too: taken where it is the model's own, and refused where it is not."""
    model = plain("llama")
    model.lm_head.weight = model.model.embed_tokens.weight
    theirs = in_peft(model, target_modules=["q_proj", "lm_head"], r=2)
    theirs.save_pretrained(tmp_path, save_embedding_layers=True)
    assert any(name.endswith("lm_head.base_layer.weight") for name in load_file(tmp_path / WEIGHTS))
    assert close(output(loaded(model, tmp_path, "llama"), "llama"), output(theirs, "llama"))
    with pytest.raises(CheckpointError, match="of which its config does not speak"):
        fxtune.load(moved(copy.deepcopy(model)), tmp_path)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases(bias: str, tmp_path: Path) -> None:
    model = plain("vit")
    theirs = in_peft(model, target_modules=["qkv"], r=2, bias=bias, modules_to_save=["head"])
    theirs.save_pretrained(tmp_path / "theirs")
    tuned = fxtune.load(model, tmp_path / "theirs")
    assert close(output(tuned, "vit"), output(theirs, "vit"))
    assert "blocks.1.attn.qkv.bias" in tuned.trainable
    assert ("blocks.1.norm1.bias" in tuned.trainable) == (bias == "all")
    moved(tuned, 2).save(tmp_path / "ours", format="peft")
    assert json.loads((tmp_path / "ours" / CONFIG).read_text())["bias"] == bias
    assert close(output(from_peft(model, tmp_path / "ours"), "vit"), output(tuned, "vit"))


def test_a_head_with_other_classes(tmp_path: Path) -> None:
    model = plain("vit")
    tuned = moved(fxtune.apply(model, "lora", num_classes=7, seed=0))
    tuned.save(tmp_path, format="peft")
    again = fxtune.load(model, tmp_path)
    assert close(output(again, "vit"), output(tuned, "vit")) and again.num_classes == 7
    with_head = copy.deepcopy(model)
    with_head.reset_classifier(7)
    assert close(output(from_peft(with_head, tmp_path), "vit"), output(tuned, "vit"))
    again.save(tmp_path / "own")
    assert torch.equal(output(fxtune.load(model, tmp_path / "own"), "vit"), output(again, "vit"))


# ---- diffusers -----------------------------------------------------------------------------------------------------

PIPELINE = diffusers.StableDiffusionPipeline
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.mark.parametrize("written", ["with its config", "by its own names", "by the model"])
def test_a_file_of_diffusers(written: str, tmp_path: Path) -> None:
    model = plain("unet")
    theirs = copy.deepcopy(model)
    told = written in ("with its config", "by the model")
    config = {"target_modules": [*ATTENTION, "proj_in"], "r": 4, "rank_pattern": {"to_q": 2}}
    alphas = (
        {"lora_alpha": 6, "alpha_pattern": {"to_k": 1}} if told else {"lora_alpha": 4, "alpha_pattern": {"to_q": 2}}
    )
    theirs.add_adapter(peft.LoraConfig(**config, **alphas))
    moved(theirs)
    tensors = peft.get_peft_model_state_dict(theirs)
    if written == "by the model":
        theirs.save_lora_adapter(tmp_path)
    else:
        metadata = theirs.peft_config["default"].to_dict() if told else None
        tensors = convert_state_dict_to_diffusers(tensors) if written == "by its own names" else tensors
        PIPELINE.save_lora_weights(tmp_path, unet_lora_layers=tensors, unet_lora_adapter_metadata=metadata)
    tuned = loaded(model, tmp_path, "unet")
    assert close(output(tuned, "unet"), output(theirs, "unet"))
    assert not close(output(tuned, "unet"), output(model, "unet"))


def test_a_file_for_diffusers(tmp_path: Path) -> None:
    model = plain("unet")
    rules = [
        {"at": "mha", "on": ["q_proj", "v_proj"], "insert": {"lora": {"rank": 2, "alpha": 3.5}}},
        {"at": "linear", "where": {"path": "*proj_in"}, "insert": {"lora": {"rank": 4}}},
    ]
    tuned = fxtune.apply(model, {"rules": rules}, seed=0, example_inputs=((), inputs_of("unet", 2)))
    moved(tuned).save(tmp_path, format="diffusers")
    theirs = copy.deepcopy(model)
    tensors, alphas, metadata = PIPELINE.lora_state_dict(tmp_path, weight_name=DIFFUSERS, return_lora_metadata=True)
    PIPELINE.load_lora_into_unet(tensors, alphas, theirs, metadata=metadata)
    assert close(output(theirs, "unet"), output(tuned, "unet"))
    assert not close(output(tuned, "unet"), output(model, "unet"))
    assert close(output(loaded(model, tmp_path, "unet"), "unet"), output(tuned, "unet"))


def test_lora_for_other_models_of_a_pipeline_is_told(tmp_path: Path) -> None:
    model = plain("unet")
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    pair = {f"unet.{path}.lora_A.weight": torch.ones(2, 16), f"unet.{path}.lora_B.weight": torch.ones(16, 2)}
    save_file({**pair, "text_encoder.a.lora_A.weight": torch.ones(2, 2)}, tmp_path / DIFFUSERS)
    with pytest.warns(UserWarning, match=r"(?s)for other models.*text_encoder"):
        fxtune.load(model, tmp_path)


# ---- PEFT's way with names -----------------------------------------------------------------------------------------

PARTS = st.sampled_from(["q", "fc", "0", "1", "11", "xq", "a.b", "head"])
PATHS = st.lists(st.lists(PARTS, min_size=1, max_size=3).map(".".join), min_size=1, max_size=8, unique=True)


@given(paths=PATHS, data=st.data())
def test_peft_finds_the_targets_and_no_other(paths: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(paths), min_size=1, unique=True))
    config = peft.LoraConfig(target_modules=targets(chosen, paths))
    assert [path for path in paths if check_target_module_exists(config, path)] == [p for p in paths if p in chosen]
    patterns = {pattern_of(path): i for i, path in enumerate(chosen)}
    for path in paths:
        assert patterns.get(get_pattern_key(patterns, path)) == (chosen.index(path) if path in chosen else None)


PATTERNS = st.lists(
    st.sampled_from(["q", "fc", "1", ".", r"\.", r"\d", r"\d+", "[0-9]+", ".*", "^", "$", "[a-f]", "0"]), max_size=5
).map("".join)


@given(patterns=st.dictionaries(PATTERNS, st.integers(1, 9), max_size=3), paths=PATHS)
def test_patterns_are_read_as_peft_does(patterns: dict[str, int], paths: list[str]) -> None:
    try:
        number_of = lookup(patterns, 0)
    except ValueError:
        return  # refused: more runs than are taken, or an anchor within
    for path in paths:
        assert number_of(path) == patterns.get(get_pattern_key(patterns, path), 0)
