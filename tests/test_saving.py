"""Save and load: what comes back is what was there, bit for bit, or nothing at all."""

import os
import pickle
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import fxtune
from effort import examples
from families import FAMILIES, build, tuned_on
from fxtune.digests import digest_of
from fxtune.errors import CheckpointError
from fxtune.saving import FILE
from fxtune.tuned import one_capture


def outputs(model: nn.Module, inputs: dict[str, Any]) -> list[torch.Tensor]:
    with torch.no_grad():
        found = torch.utils._pytree.tree_leaves(model.eval()(**inputs))
    return [leaf for leaf in found if isinstance(leaf, torch.Tensor)]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


ROUND_TRIPS = {
    "vit": ["tri_res", "res_bypass", "lora", "vpt_deep", {"train": ["all"]}],
    "bert": ["dual_res", "prefix"],
    "convnext": ["dual_res", "res_bypass"],
    "resnet": ["single_adapter_block", "res_bypass_vertical"],
    "unet": ["tri_res", "res_bypass"],
}


@pytest.mark.parametrize("family", ROUND_TRIPS)
def test_a_round_trip_gives_the_same_bits(family: str, tmp_path: Path) -> None:
    model = build(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = FAMILIES[family].inputs(3)
    for i, rules in enumerate(ROUND_TRIPS[family]):
        with one_capture():
            tuned = tuned_on(model, family, rules)
            tuned.save(tmp_path / f"{i}")
            loaded = fxtune.load(model, tmp_path / f"{i}")
        assert same(outputs(loaded, inputs), outputs(tuned, inputs)), rules
        assert not same(outputs(model, inputs), outputs(tuned, inputs)), rules
        assert loaded.trainable == tuned.trainable
        assert str(loaded.report()) == str(tuned.report())
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert fxtune.load(model, tmp_path / f"{i}").strip() is model


FRESH = """
import sys, torch, fxtune
from families import FAMILIES, build, tuned_on
torch.manual_seed(1234)
model = build("vit")
tuned = fxtune.load(model, sys.argv[1]).eval()
torch.save(tuned(**FAMILIES["vit"].inputs(3)), sys.argv[2])
"""


def test_a_fresh_process_with_another_seed_gives_the_same_bits(tmp_path: Path) -> None:
    tuned = tuned_on(build("vit"), "vit", ["dual_res", "prefix"], num_classes=4, blocks="first 2")
    tuned.save(tmp_path / "out")
    environment = {**os.environ, "PYTHONPATH": f"{Path(fxtune.__file__).parent.parent}:{Path(__file__).parent}"}
    command = [sys.executable, "-c", FRESH, str(tmp_path / "out"), str(tmp_path / "result.pt")]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    assert torch.equal(torch.load(tmp_path / "result.pt"), tuned(**FAMILIES["vit"].inputs(3)))


def test_only_what_is_the_tuned_models_own_is_stored(tmp_path: Path) -> None:
    tuned = tuned_on(build("vit"), "vit", "tri_res", num_classes=4)
    tuned.save(tmp_path)
    assert set(load_file(tmp_path / FILE)) == set(tuned.trainable)
    assert (tmp_path / FILE).stat().st_size < 4 * sum(p.numel() for p in tuned.parameters() if p.requires_grad) + 30_000


def test_statistics_that_moved_are_stored(tmp_path: Path) -> None:
    model = build("resnet")
    tuned = tuned_on(model, "resnet", "single_adapter_block", batchnorm="track").train()
    inputs = FAMILIES["resnet"].inputs(3)
    tuned(**inputs)
    tuned.save(tmp_path)
    assert any("running_mean" in name for name in load_file(tmp_path / FILE))
    assert same(outputs(fxtune.load(model, tmp_path), inputs), outputs(tuned, inputs))


def test_a_new_head_that_does_not_train_is_stored(tmp_path: Path) -> None:
    model, inputs = build("vit"), FAMILIES["vit"].inputs(2)
    tuned = tuned_on(
        model, "vit", {"train": ["tuners"], "rules": [{"at": "ffn", "insert": "res_adapter"}]}, num_classes=9
    )
    tuned.save(tmp_path)
    assert same(outputs(fxtune.load(model, tmp_path), inputs), outputs(tuned, inputs))


def test_inputs_other_than_the_cards_are_known_again(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

        def forward(self, x: torch.Tensor, flag: bool, more: list[torch.Tensor]) -> torch.Tensor:
            y: torch.Tensor = self.down(torch.nn.functional.gelu(self.up(x))) + x
            return y + more[0] if flag else y

    model, given = Two(), (torch.randn(2, 5, 6), True, [torch.randn(2, 5, 6)])
    rules = {"train": ["tuners"], "rules": [{"at": "ffn", "insert": "res_adapter"}]}
    tuned = fxtune.apply(model, rules, example_inputs=given)
    tuned.save(tmp_path)
    assert torch.equal(fxtune.load(model, tmp_path)(*given), tuned(*given))


def test_the_rules_stand_beside_as_files_that_apply(tmp_path: Path) -> None:
    model = build("vit")
    tuned = tuned_on(model, "vit", ["dual_res", "prefix"], dim=5, tokens=3, blocks=[1])
    tuned.save(tmp_path)
    again = fxtune.apply(
        model, sorted(tmp_path.glob("*.yaml"), reverse=True), example_inputs=((), FAMILIES["vit"].inputs(2))
    )
    assert {name: p.shape for name, p in again.named_parameters() if p.requires_grad} == {
        name: p.shape for name, p in tuned.named_parameters() if p.requires_grad
    }
    assert yaml.safe_load((tmp_path / "rules.yaml").read_text())["name"] == "dual_res"


# ---- another backbone ----------------------------------------------------------------------------------------------


def vit(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    drawn = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 4, **changes}
    return VisionTransformer(**drawn).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tuned = fxtune.apply(vit(), "dual_res", seed=0, num_classes=3)
    with torch.no_grad():
        for name in tuned.trainable:
            tuned.get_parameter(name).normal_()
    tuned.save(folder)
    return folder


@pytest.mark.parametrize("changes", [{"depth": 3}, {"num_heads": 4}, {"embed_dim": 48}, {"qkv_bias": False}])
def test_another_structure_is_refused_with_the_first_node_that_differs(changes: dict[str, Any], saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)another structure.*first difference: they were tuned on `%\d+ ="):
        fxtune.load(vit(**changes), saved)


def test_other_weights_are_told(saved: Path) -> None:
    model = vit()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxtune.load(model, saved)  # the very same weights: no warning
    with torch.no_grad():
        model.get_parameter("blocks.1.mlp.fc1.weight")[3, 5] += 1
    with pytest.warns(UserWarning, match=r"(?s)1 weights differ, the first is `blocks.1.mlp.fc1.weight`"):
        fxtune.load(model, saved)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp\.fc1\.weight"):
        fxtune.load(model, saved, other_weights="refuse")


def test_a_tuned_model_is_no_backbone(saved: Path) -> None:
    with pytest.raises(fxtune.PlanError, match="tuned already"):
        fxtune.load(fxtune.load(vit(), saved), saved)


# ---- strangers' files ----------------------------------------------------------------------------------------------


def header(saved: Path) -> dict[str, str]:
    with safe_open(saved / FILE, framework="pt") as file:
        return dict(file.metadata())


def rewritten(saved: Path, to: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> Path:
    """A checkpoint with something changed by somebody who knows the format, digest and all."""
    from fxtune.saving import file

    tensors, metadata = load_file(saved / FILE), header(saved)
    change(tensors, metadata)
    metadata["digest"] = file._digest(metadata, tensors)
    save_file(tensors, to / FILE, metadata=metadata)
    return to


def origin(metadata: dict[str, str], old: str, new: str) -> None:
    assert old in metadata["origin"]
    metadata["origin"] = metadata["origin"].replace(old, new)


HOSTILE: dict[str, tuple[Callable[[dict[str, torch.Tensor], dict[str, str]], Any], str]] = {
    "a weight less": (lambda t, m: t.pop(first_tuner(t)), "nothing for"),
    "a weight more": (lambda t, m: t.update({"../../blocks": torch.ones(2)}), "does not have"),
    "a name nearby": (lambda t, m: t.update({f"{first_tuner(t)}s": torch.ones(2)}), "nearest"),
    "another shape": (lambda t, m: t.update({first_tuner(t): torch.ones(3, 3)}), "of shape"),
    "another kind": (lambda t, m: t.update({first_tuner(t): t[first_tuner(t)].long()}), "int64"),
    "not a number": (lambda t, m: t[first_tuner(t)].view(-1)[:1].fill_(float("nan")), "not finite"),
    "infinite": (lambda t, m: t[first_tuner(t)].view(-1)[:1].fill_(float("inf")), "not finite"),
    "no origin": (lambda t, m: m.pop("origin"), "has no 'origin'"),
    "another version": (lambda t, m: m.update(fxtune="2"), "fxtune: '2'"),
    "an unknown key": (lambda t, m: origin(m, '{"rules"', '{"run": "rm", "rules"'), "run: Extra inputs"),
    "an unknown tuner": (lambda t, m: origin(m, '"res_adapter"', '"os_system"'), "os_system"),
    "huge tuners": (lambda t, m: origin(m, '"scale"', '"dim": 1000000000000, "scale"'), "weights of tuners"),
    "a huge head": (lambda t, m: origin(m, '"num_classes":3', '"num_classes":3000000000000'), "3,000,000,000,000"),
    "a dtype of theirs": (lambda t, m: origin(m, '"num_classes"', '"dtype":"load","num_classes"'), "dtype"),
    "an endless text": (lambda t, m: m.update(backbone=bomb()), "67108864 bytes"),
    "no text": (lambda t, m: m.update(backbone="~~~ not base 85 ~~~"), "cannot be read"),
}


def first_tuner(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in sorted(tensors) if "tuners" in name and name.endswith("weight"))


def bomb() -> str:
    import base64
    import zlib

    return base64.b85encode(zlib.compress(b" " * 2**27, 9)).decode()


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused(what: str, saved: Path, tmp_path: Path) -> None:
    change, message = HOSTILE[what]
    model = vit()
    before = {name: digest_of(tensor) for name, tensor in model.state_dict().items()}
    with pytest.raises(fxtune.FxtuneError, match=message):
        fxtune.load(model, rewritten(saved, tmp_path, change))
    assert {name: digest_of(tensor) for name, tensor in model.state_dict().items()} == before


class Pwned:
    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)


def test_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / FILE).write_bytes(pickle.dumps(Pwned()))
    with pytest.raises(CheckpointError, match="cannot be read"):
        fxtune.load(vit(), tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_what_is_no_checkpoint_is_told(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        fxtune.load(vit(), tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(CheckpointError, match=r"it has notes\.txt"):
        fxtune.load(vit(), tmp_path)
    (tmp_path / FILE).symlink_to(saved / FILE)
    with pytest.raises(CheckpointError, match="links are not followed"):
        fxtune.load(vit(), tmp_path)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        fxtune.load(vit(), tmp_path)


@settings(
    max_examples=examples(200, 1000),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
@given(place=st.floats(0, 1, exclude_max=True), cut=st.booleans(), bit=st.integers(0, 7))
def test_damaged_files_are_refused(place: float, cut: bool, bit: int, saved: Path, tmp_path: Path) -> None:
    """A bit flipped anywhere, or the file cut short there."""
    from fxtune.saving import read

    whole = (saved / FILE).read_bytes()
    at = int(place * len(whole))
    changed = whole[:at] if cut else whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
    (tmp_path / FILE).write_bytes(changed)
    with pytest.raises(CheckpointError):
        read(tmp_path).tensors()


# ---- a killed save -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_save_never_loses_the_earlier_one(saved: Path, tmp_path: Path) -> None:
    from fxtune.saving import read, write

    whole = read(saved)
    tensors = {name: torch.zeros(64, 1024) for name in ("tuners.a", "tuners.b", "tuners.c")}

    def save(number: int) -> None:
        filled = {name: tensor + number for name, tensor in tensors.items()}
        write(tmp_path, filled, whole.origin, whole.backbone)

    begun = time.monotonic()
    for _ in range(5):
        save(0)
    one = (time.monotonic() - begun) / 5
    random.seed(0)
    survivors = set()
    for _ in range(examples(50, 200)):
        child = os.fork()
        if child == 0:  # saves until it is killed
            for number in range(1, 100_000):
                save(number)
            os._exit(1)
        time.sleep(random.uniform(0, 10 * one))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = read(tmp_path).tensors()
        numbers = {float(number) for tensor in found.values() for number in (tensor.min(), tensor.max())}
        assert len(numbers) == 1, "of two saves"
        survivors |= numbers
    assert len(survivors) > 2, "they were killed at other moments"


def test_a_folder_that_cannot_be_written_is_told(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="can't be written"):
        fxtune.load(vit(), saved).save(tmp_path / "file")
