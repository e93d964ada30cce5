"""LoRA between fxtune, PEFT and diffusers: the same outputs in each, and nothing taken that is not carried over."""

import copy
import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest
import torch
import transformers
from diffusers.utils import convert_state_dict_to_diffusers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import nn

import fxtune
from effort import examples
from families import FAMILIES, build, texts
from fxtune.digests import digest_of
from fxtune.errors import CheckpointError
from fxtune.interchange.patterns import lookup, pattern_of
from fxtune.interchange.writing import targets
from fxtune.tuned import TunedModel

# PEFT still asks transformers under an old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CONFIG, WEIGHTS, DIFFUSERS = "adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors"


def gpt2() -> nn.Module:
    sizes = {"vocab_size": 40, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2, "num_labels": 3}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False}
    return transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**sizes, **ids))


def llama() -> nn.Module:
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "use_cache": False}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))


def unet() -> nn.Module:
    """Of one resolution: a 1x1 convolution before and behind each transformer, and one around a residual block."""
    blocks = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
    sizes = {"block_out_channels": [16], "norm_num_groups": 4, "attention_head_dim": 4, "layers_per_block": 1}
    return diffusers.UNet2DConditionModel(
        sample_size=16, cross_attention_dim=32, mid_block_type=None, **blocks, **sizes
    )


SMALL = {"gpt2": gpt2, "llama": llama, "unet": unet}


def plain(family: str) -> nn.Module:
    if family not in SMALL:
        return build(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SMALL[family]().eval()


def inputs_of(family: str, batch: int = 3) -> dict[str, Any]:
    return FAMILIES[family].inputs(batch) if family in FAMILIES else texts(batch)


def output(model: nn.Module, family: str) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = torch.utils._pytree.tree_leaves(model.eval()(**inputs_of(family)))[0]
    return found


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """To 1e-6 of the largest output."""
    return a.shape == b.shape and float((a - b).abs().max()) <= 1e-6 * float(b.abs().max())


def moved(model: nn.Module, seed: int = 1) -> nn.Module:
    """Every weight that trains gets other numbers: B leaves zero."""
    made = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=made), alpha=0.1)
    return model


def in_peft(model: nn.Module, seed: int = 1, **config: Any) -> Any:
    """The model with LoRA as PEFT trains it, on a copy."""
    return moved(peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**config)), seed).eval()


def from_peft(model: nn.Module, folder: Path) -> nn.Module:
    """What PEFT makes of a folder. It warns where a name in it finds no place, and a warning is an error here."""
    return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()


def loaded(model: nn.Module, folder: Path, family: str) -> TunedModel:
    return fxtune.load(model, folder, example_inputs=((), inputs_of(family, 2)))


def digests(model: nn.Module) -> dict[str, str]:
    return {name: digest_of(tensor) for name, tensor in model.state_dict().items()}


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


# ---- strangers' files ----------------------------------------------------------------------------------------------

QKV = "base_model.model.blocks.0.attn.qkv"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    in_peft(plain("vit"), target_modules=["qkv"], r=2, modules_to_save=["head"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return plain("vit")


def changed(
    saved: Path,
    to: Path,
    tensors: Callable[[dict[str, torch.Tensor]], Any] | None = None,
    config: Callable[[dict[str, Any]], Any] | None = None,
) -> Path:
    weights, text = load_file(saved / WEIGHTS), json.loads((saved / CONFIG).read_text())
    if tensors is not None:
        tensors(weights)
    if config is not None:
        config(text)
    save_file(weights, to / WEIGHTS)
    (to / CONFIG).write_text(json.dumps(text))
    return to


def moves(name: str, to: str) -> Callable[[dict[str, torch.Tensor]], Any]:
    def move(tensors: dict[str, torch.Tensor]) -> None:
        for half in ("A", "B"):
            tensors[f"base_model.model.{to}.lora_{half}.weight"] = tensors.pop(f"{name}.lora_{half}.weight")

    return move


def pair(down: tuple[int, ...], up: tuple[int, ...]) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda t: t.update({f"{QKV}.lora_A.weight": torch.ones(down), f"{QKV}.lora_B.weight": torch.ones(up)})


TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "an unknown module": (moves(QKV, "blocks.0.attn.qvk"), r"no module `blocks.0.attn.qvk`; nearest: blocks\.\d\.attn"),
    "half a pair": (lambda t: t.pop(f"{QKV}.lora_B.weight"), r"lacks the other, `blocks.0.attn.qkv.lora_B.weight`"),
    "an unknown weight": (lambda t: t.update({"base_model.model.heed.bias": torch.ones(4)}), "nearest: head.bias"),
    "an unspoken weight": (
        lambda t: t.update({"base_model.model.norm.weight": torch.full((32,), 2.0)}),
        "of which its config does not speak",
    ),
    "a weight less": (lambda t: t.pop("base_model.model.head.bias"), "nothing for `head.bias`"),
    "another name space": (lambda t: t.update({"head.weight": torch.ones(4, 32)}), "begins with `base_model.model.`"),
    "not a number": (lambda t: t[f"{QKV}.lora_A.weight"].view(-1)[:1].fill_(float("nan")), "not finite"),
    "infinite": (lambda t: t["base_model.model.head.bias"][:1].fill_(float("inf")), "not finite"),
    "whole numbers": (
        lambda t: t.update({f"{QKV}.lora_A.weight": torch.ones(2, 32, dtype=torch.long)}),
        "which are no weights",
    ),
    "two ranks": (pair((2, 32), (96, 3)), "do not fit each other"),
    "one axis": (pair((2,), (96, 2)), "do not fit each other"),
    "a rank that the config lacks": (pair((3, 32), (96, 3)), "of rank 3, and its config says 2"),
    "another width": (pair((2, 31), (96, 2)), "whose weight is 96 x 32"),
    "a kernel": (pair((2, 32, 3, 3), (96, 2, 1, 1)), "whose weight is 96 x 32"),
    "another head": (lambda t: t.update({"base_model.model.head.weight": torch.ones(4, 31)}), r"of shape \(4, 31\)"),
    "DoRA": (lambda t: t.update({f"{QKV}.lora_magnitude_vector": torch.ones(96)}), "DoRA"),
    "an inner bias": (lambda t: t.update({f"{QKV}.lora_B.bias": torch.ones(96)}), "a bias inside of LoRA"),
    "an embedding": (lambda t: t.update({f"{QKV}.lora_embedding_A": torch.ones(2, 4)}), "an embedding"),
    "an adapter's name": (
        lambda t: t.update({f"{QKV}.lora_A.default.weight": torch.ones(2, 32)}),
        "no weight `blocks.0.attn.qkv.lora_A.default.weight`",
    ),
    "a huge name": (lambda t: t.update({"base_model.model." + "a." * 100_000: torch.ones(1)}), "no weight"),
}

CONFIGS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another method": (lambda c: c.update(peft_type="IA3"), "another method than LoRA"),
    "DoRA": (lambda c: c.update(use_dora=True), "use_dora: DoRA"),
    "PiSSA": (
        lambda c: c.update(init_lora_weights="pissa_niter_16"),
        "'pissa_niter_16', which changes the model's own",
    ),
    "replication": (lambda c: c.update(layer_replication=[[0, 2]]), "layer_replication: layers that are there twice"),
    "parameters": (lambda c: c.update(target_parameters=["a.b"]), "target_parameters"),
    "tokens": (lambda c: c.update(trainable_token_indices=[1]), "trainable_token_indices"),
    "an unknown key": (lambda c: c.update(lora_alhpa=3), "unknown key 'lora_alhpa'.*nearest: 'lora_alpha'"),
    "another type": (lambda c: c.update(r="2"), "found '2' at `r`|'2'"),
    "a bad number": (lambda c: c.update(lora_alpha=-1), "-1"),
    "a bad word": (lambda c: c.update(bias="some"), "'some'"),
    "other modules": (lambda c: c.update(target_modules=["proj"]), "target_modules do not name"),
    "another rank": (lambda c: c.update(rank_pattern={r"0\.attn\.qkv": 4}), "of rank 2, and its config says 4"),
    "an endless expression": (lambda c: c.update(rank_pattern={"(a|a)*" * 20 + "$": 4}), "could run for years"),
    "many runs": (lambda c: c.update(alpha_pattern={".*" * 20 + "x": 4}), "could run for years"),
    "a broken expression": (lambda c: c.update(alpha_pattern={"[z-a]": 4}), "bad character range"),
}


@pytest.mark.parametrize("what", TENSORS)
def test_hostile_tensors_are_refused(what: str, saved: Path, vit: nn.Module, tmp_path: Path) -> None:
    change, message = TENSORS[what]
    before, begun = digests(vit), time.monotonic()
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        fxtune.load(vit, changed(saved, tmp_path, tensors=change))
    assert digests(vit) == before and time.monotonic() - begun < 20


@pytest.mark.parametrize("what", CONFIGS)
def test_configs_of_more_than_lora_are_refused(what: str, saved: Path, vit: nn.Module, tmp_path: Path) -> None:
    change, message = CONFIGS[what]
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        fxtune.load(vit, changed(saved, tmp_path, config=change))


TEXTS = {
    "no text": ("\xff\xfe".encode("latin1"), "utf-8"),
    "no JSON": (b"{'r': 2}", "no JSON"),
    "no mapping": (b"[1]", "no mapping"),
    "twice": (b'{"r": 2, "r": 3}', "'r' stands there twice"),
    "no number": (b'{"lora_alpha": NaN}', "NaN is no number"),
    "beyond numbers": (b'{"lora_alpha": 1e999}', "inf"),
    "deep": (b'{"r": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "deep but valid": (b'{"r": ' + b"[" * 900 + b"]" * 900 + b"}", "r"),
    "a huge number": (b'{"r": ' + b"9" * 5000 + b"}", "no JSON"),
}


@pytest.mark.parametrize("what", TEXTS)
def test_damaged_configs_are_refused(what: str, saved: Path, vit: nn.Module, tmp_path: Path) -> None:
    text, message = TEXTS[what]
    shutil.copy(saved / WEIGHTS, tmp_path)
    (tmp_path / CONFIG).write_bytes(text)
    with pytest.raises(CheckpointError, match=message):
        fxtune.load(vit, tmp_path)


def test_what_newer_versions_switch_off_is_no_matter(saved: Path, vit: nn.Module, tmp_path: Path) -> None:
    newer = {"use_newer": False, "newer_config": None, "newer_list": []}
    tuned = fxtune.load(vit, changed(saved, tmp_path, config=lambda c: c.update(newer)))
    assert torch.equal(output(tuned, "vit"), output(fxtune.load(vit, saved), "vit"))


def test_modules_without_a_linear_map_are_named(saved: Path, vit: nn.Module, tmp_path: Path) -> None:
    for module, shapes, message in (
        ("patch_embed.proj", ((2, 3, 8, 7), (32, 2, 1, 1)), r"shape \(2, 3, 8, 7\) .* whose weight is 32 x 3 x 8 x 8"),
        ("blocks.0.norm1", ((2, 32), (32, 2)), "a LayerNorm, computes none by itself"),
        ("blocks.0.attn.qkv", ((33, 32), (96, 33)), "rank 33 at `blocks.0.attn.qkv`, whose weight is 96 x 32"),
    ):
        pair = {f"base_model.model.{module}.lora_{half}.weight": torch.ones(shapes[half == "B"]) for half in "AB"}
        save_file(pair, tmp_path / WEIGHTS)
        (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": len(torch.ones(shapes[0]))}))
        with pytest.raises(CheckpointError, match=message):
            fxtune.load(vit, tmp_path)


@pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups > 1:UserWarning")
def test_a_convolution_of_several_groups_is_named(tmp_path: Path) -> None:
    """PEFT's A reads all channels for each of them: another change than any of the weight."""
    model = plain("convnext")
    in_peft(model, target_modules=["stages.0.blocks.0.conv_dw"], r=16).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="conv_dw` is a transposed convolution, or one of several groups"):
        fxtune.load(model, tmp_path)
    tuned = fxtune.apply(model, {"rules": [{"at": "convolution", "insert": {"lora": {"rank": 1}}}]})
    with pytest.raises(CheckpointError, match="a convolution of several groups"):
        tuned.save(tmp_path / "out", format="peft")


def test_an_embedding_is_named(tmp_path: Path) -> None:
    name = "base_model.model.bert.embeddings.word_embeddings"
    save_file(
        {f"{name}.lora_A.weight": torch.ones(2, 40), f"{name}.lora_B.weight": torch.ones(32, 2)}, tmp_path / WEIGHTS
    )
    (tmp_path / CONFIG).write_text('{"peft_type": "LORA", "r": 2}')
    with pytest.raises(CheckpointError, match="word_embeddings` is an embedding"):
        fxtune.load(plain("bert"), tmp_path)


class Pwned:
    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_lora_weights.bin", WEIGHTS, DIFFUSERS])
def test_a_pickle_is_not_run(name: str, saved: Path, vit: nn.Module, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Pwned()))
    if name.startswith("adapter"):
        shutil.copy(saved / CONFIG, tmp_path)
    with pytest.raises(CheckpointError, match="is a pickle" if name.endswith("bin") else "cannot be read"):
        fxtune.load(vit, tmp_path)
    assert not (tmp_path / "pwned").exists()


@settings(max_examples=examples(100, 1000), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), cut=st.booleans(), bit=st.integers(0, 7), text=st.booleans())
def test_damaged_files_are_refused_or_whole(
    place: float, cut: bool, bit: int, text: bool, saved: Path, vit: nn.Module, tmp_path: Path
) -> None:
    """A bit flipped anywhere, or a file cut short there: an error of ours, or what still has a meaning."""
    from fxtune.interchange import read_peft

    for name in (CONFIG, WEIGHTS):
        whole = (saved / name).read_bytes()
        if text == (name == CONFIG):
            at = int(place * len(whole))
            whole = whole[:at] if cut else whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
        (tmp_path / name).write_bytes(whole)
    try:
        found = read_peft(tmp_path, vit)
    except CheckpointError:
        return
    assert not cut and set(found.maps) <= {f"blocks.{i}.attn.qkv" for i in range(2)}


def test_folders_say_what_they_hold(saved: Path, vit: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)no format 'pfet'.*did you mean 'peft'"):
        fxtune.load(vit, saved, format="pfet")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"no file adapter_config\.json"):
        fxtune.load(vit, tmp_path, format="peft")
    with pytest.raises(CheckpointError, match="cannot be told"):
        fxtune.load(vit, saved, other_weights="refuse")
    tuned = fxtune.load(vit, saved)
    tuned.save(tmp_path)
    tuned.save(tmp_path, format="peft")
    with pytest.raises(CheckpointError, match=r"fxtune .*peft .*"):
        fxtune.load(vit, tmp_path)
    for form in ("fxtune", "peft"):
        assert torch.equal(output(fxtune.load(vit, tmp_path, format=form), "vit"), output(tuned, "vit"))
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"no file {WEIGHTS}"):
        fxtune.load(vit, tmp_path, format="peft")


# ---- what has no words there ---------------------------------------------------------------------------------------

LORA = {"at": "mha", "on": ["q_proj"], "insert": {"lora": {"rank": 2}}}
OUTPUT = {"at": "linear", "where": {"path": "*attn.proj"}, "reads": "output", "insert": "lora"}
UNSAID: dict[str, tuple[Any, str]] = {
    "another tuner": ("dual_res", r"res_adapter at `blocks.0"),
    "a unit": ({"rules": [{"at": "ffn", "insert": "lora"}]}, "LoRA at the ffn of `blocks.0"),
    "the output": (
        {"rules": [OUTPUT]},
        "reads the output",
    ),
    "a bypass": ({"bypass": {}}, "a bypass"),
    "nothing": ("linear", "no LoRA at all"),
    "two at one map": ({"rules": [LORA, LORA]}, "two LoRA at `blocks.0.attn.qkv`"),
    "two dropouts": (
        {"rules": [LORA, {"at": "linear", "where": {"path": "*fc1"}, "insert": {"lora": {"dropout": 0.5}}}]},
        "dropouts of 0.0, 0.5",
    ),
    "a part of a module": (
        {"train": ["tuners", "norm.bias"], "rules": [LORA]},
        "`norm.bias` trains, and `norm.weight` of the same module does not",
    ),
    "the weight itself": (
        {"train": ["tuners", "blocks.1.attn.qkv.*"], "rules": [LORA]},
        "`blocks.1.attn.qkv.weight` trains, and there is LoRA",
    ),
    "no module": ({"train": ["tuners", "*pos_embed*"], "rules": [LORA]}, "`pos_embed` trains, which lies in no module"),
}


@pytest.mark.parametrize("what", UNSAID)
def test_what_peft_has_no_words_for_is_refused(what: str, vit: nn.Module, tmp_path: Path) -> None:
    rules, message = UNSAID[what]
    tuned = fxtune.apply(vit, rules, seed=0)
    with pytest.raises(CheckpointError, match=message):
        tuned.save(tmp_path / "out", format="peft")
    assert not (tmp_path / "out").exists()


def test_what_diffusers_has_no_words_for_is_refused(vit: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no card says what a pipeline calls a VisionTransformer"):
        fxtune.apply(vit, {"rules": [LORA]}).save(tmp_path, format="diffusers")
    rules = {"train": ["tuners", "conv_out.*"], "rules": [LORA]}
    tuned = fxtune.apply(plain("unet"), rules, example_inputs=((), inputs_of("unet", 2)))
    with pytest.raises(CheckpointError, match=r"`conv_out\.\w+` trains, too"):
        tuned.save(tmp_path, format="diffusers")
    with pytest.raises(CheckpointError, match="can't be written"):
        (tmp_path / "file").touch()
        fxtune.apply(vit, {"rules": [LORA]}).save(tmp_path / "file", format="peft")
