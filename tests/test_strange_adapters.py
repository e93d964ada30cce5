"""LoRA of other libraries that is not taken, or has no words there: refused by name, and nothing is changed."""

import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import fxtune
from adapters import CONFIG, DIFFUSERS, WEIGHTS, digests, in_peft, inputs_of, output, plain
from effort import examples
from fxtune.errors import CheckpointError

# PEFT still asks transformers under an old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

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
    with pytest.raises(CheckpointError, match=r"the factors at `stages\.0\.blocks\.0\.conv_dw` do not fit each other"):
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
