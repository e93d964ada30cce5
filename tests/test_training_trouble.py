"""What a training makes of data, models and folders that are not as they should be."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from typer.testing import CliRunner

import fxtune
from fxtune import cli
from fxtune.data import Data, Split, load_data
from fxtune.errors import CheckpointError, DataError, InputError, TrainingError
from fxtune.recipes import USUAL, load_recipe
from fxtune.training.evaluating import measured
from fxtune.training.objective import Classification
from fxtune.training.preparing import preparation
from fxtune.training.steps import Step, Stepper
from training_models import DIGITS, RECIPE, tuned_on, vit

WHOLE = {**RECIPE, "images": {"size": 16, "crop": "none", "flip": False}}


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data(DIGITS)


def shades(folder: Path, count: int, *splits: str, names: tuple[str, ...] = ("dark", "light")) -> Path:
    """Grey images of so many of each class."""
    drawn = random.Random(0)
    for split in splits:
        for number, name in enumerate(names):
            for i in range(count):
                place = folder / split / name / f"{i}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), drawn.randrange(100) + 150 * number).save(place)
    return folder


def break_all(folder: Path) -> list[Path]:
    places = sorted(folder.rglob("*.png"))
    for place in places:
        place.write_bytes(place.read_bytes()[:40])
    return places


def on(folder: Path, out: Path, **settings: Any) -> fxtune.Run:
    given = {"epochs": 2, "batch": 4, **settings}
    return fxtune.tune(vit(), f"images/{folder}", "tri_res", out=out, recipe=WHOLE, settings=given, progress=False)


def test_broken_test_images_cost_nothing_but_themselves(tmp_path: Path) -> None:
    """Also where a whole batch of them is broken."""
    folder = shades(tmp_path / "data", 6, "train", "test")
    whole = on(folder, tmp_path / "a")
    broken = break_all(folder / "test" / "light")
    with pytest.warns(UserWarning, match="6 samples could not be decoded") as warned:
        score = fxtune.evaluate(whole.tuned, f"images/{folder}", recipe={**WHOLE, "batch": 4})
    assert all(str(place) in str(warned[0].message) for place in broken)
    data = load_data(f"images/{folder}")
    made = preparation(data, load_recipe(WHOLE), None, ["x"])
    images = torch.stack([made.value(sample, False) for sample in data.split("test") if sample.label == 0])
    assert len(images) == 6 and score == float((whole.tuned.eval()(images).argmax(-1) == 0).float().mean())
    run = on(folder, tmp_path / "b")
    assert run.scores == {"test": score} and len(run.unreadable) == 6 and "6 samples" in str(run)


def test_a_process_without_a_sample_of_its_own_measures_nothing(tmp_path: Path) -> None:
    """9 samples over two processes in batches of 4: the second has one batch less, and fills it.

    The labels are the model's answers but for two samples, one of each process."""
    data = load_data({**DIGITS, "limit": {"train": 9}})
    model, recipe = vit(num_classes=10), load_recipe(WHOLE, {"batch": 4})
    made = preparation(data, recipe, None, ["x"])
    answers = [int(model(made.value(sample, False)[None]).argmax()) for sample in data.split("train")]
    labels = [(answer + (i in (0, 3))) % 10 for i, answer in enumerate(answers)]
    samples = (replace(s, label=label) for s, label in zip(data.split("train"), labels, strict=True))
    data = data.with_splits({"train": Split(tuple(samples))})
    for index, right in ((0, 4 / 5), (1, 3 / 4)):
        one = SimpleNamespace(process_index=index, num_processes=2)
        found, _ = measured(model, data, "train", made, Classification(10), recipe, one)
        assert found == right


def test_the_loss_is_the_mean_over_what_can_be_decoded(tmp_path: Path) -> None:
    folder = shades(tmp_path / "data", 4, "train")
    broken = folder / "train" / "light" / "2.png"
    broken.write_bytes(broken.read_bytes()[:40])
    on(folder, tmp_path / "out", batch=8, epochs=1, schedule={"shape": "constant"})
    line = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])
    data, recipe = load_data(f"images/{folder}"), load_recipe(WHOLE)
    made = preparation(data, recipe, None, ["x"])
    kept = [sample for sample in data.split("train") if sample.name != str(broken)]
    tuned = fxtune.apply(vit(), "tri_res", num_classes=2, seed=0).train()
    images, labels = torch.stack([made.value(s, True) for s in kept]), torch.tensor([s.label for s in kept])
    assert len(kept) == 7 and line["loss"] == pytest.approx(F.cross_entropy(tuned(images), labels).item(), rel=1e-5)


def test_nothing_to_train_on(tmp_path: Path) -> None:
    folder = shades(tmp_path / "data", 3, "train")
    broken = break_all(folder)
    with pytest.raises(DataError, match="nothing to train on") as raised:
        on(folder, tmp_path / "out")
    assert all(str(place) in str(raised.value) for place in broken)
    assert not (tmp_path / "out" / "state.safetensors").exists()


def test_a_last_step_that_destroys_the_weights_is_no_success(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are looked at themselves, and by what they answer on `val`."""
    with pytest.raises(TrainingError, match="logits are not finite"):
        tuned_on(digits, tmp_path, batch=64, epochs=1, schedule__warmup=0, optimizer__lr=1e30)
    assert not (tmp_path / "run.json").exists() and not (tmp_path / "state.safetensors").exists()
    original = Stepper.run

    def destroying(self: Stepper, start: int, stop: int) -> Iterator[Step]:
        yield from original(self, start, stop)
        with torch.no_grad():
            next(weight for weight in self.layout.trained.parameters() if weight.requires_grad)[0] = torch.inf

    monkeypatch.setattr(Stepper, "run", destroying)
    with pytest.raises(TrainingError, match=r"the weights are not finite at step 3[^$]*another folder"):
        tuned_on(digits, tmp_path, epochs=1)
    assert not (tmp_path / "state.safetensors").exists()


def test_what_can_be_told_at_once_is(digits: Data, tmp_path: Path) -> None:
    empty = load_data({"source": "digits", "limit": {"train": 20}, "parts": {"train": 0.9999, "test": 0.0001}})
    with pytest.raises(DataError, match="split 'test' of digits is empty"):
        tuned_on(empty, tmp_path)
    one = shades(tmp_path / "one", 2, "train", names=("alone",))
    with pytest.raises(DataError, match="the class 'alone' alone"):
        on(one, tmp_path / "out")
    with pytest.raises(InputError, match=r"does not take what the recipe makes[^$]*32[^$]*images\.size"):
        tuned_on(digits, tmp_path / "out", images__size=32)
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


HOLD = """
import sys, time
from pathlib import Path
from fxtune.training.holding import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_two_processes_do_not_train_into_one_folder(digits: Data, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            before = {path.name for path in out.iterdir()}
            with pytest.raises(CheckpointError, match="another process trains into this folder"):
                tuned_on(digits, out)
            assert {path.name for path in out.iterdir()} == before
        finally:
            other.kill()
    assert tuned_on(digits, out).epochs == RECIPE["epochs"]  # what was killed holds nothing


def test_a_test_set_that_cannot_be_measured_does_not_cost_the_training(tmp_path: Path) -> None:
    folder = shades(tmp_path / "data", 3, "train", "test")
    break_all(folder / "test")
    with pytest.raises(DataError, match="no sample that could be decoded"):
        on(folder, tmp_path / "out")
    assert isinstance(fxtune.load(vit(), tmp_path / "out" / "tuned"), fxtune.TunedModel)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "a rate": ({"optimizer__lr": 0.001}, r"recipe\.optimizer\.lr"),
    "a tuner's scale": (
        {"rules": {"rules": [{"at": "ffn", "insert": {"res_adapter": {"dim": 2, "scale": 0.5}}}]}},
        "rules",
    ),
    "dropout": ({"model": vit(drop_rate=0.5)}, "model"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_makes_it_another_training(change: str, digits: Data, tmp_path: Path) -> None:
    rules = {"rules": [{"at": "ffn", "insert": {"res_adapter": {"dim": 2}}}]}
    tuned_on(digits, tmp_path, rules=rules, epochs=1)
    changes, told = CHANGES[change]
    with pytest.raises(CheckpointError, match=rf"another training[^$]*differs in [^\n]*{told}"):
        tuned_on(digits, tmp_path, **{"rules": rules, "epochs": 1, **changes})


def test_each_kind_of_data_has_a_usual_recipe() -> None:
    for kind, name in USUAL.items():
        recipe = load_recipe(name)
        assert (recipe.images.mean == [0.5, 0.5, 0.5]) == (kind == "captions")


def test_the_command_evaluates_as_it_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the recipe that lies beside the model, and only on data with its classes."""
    folder = shades(tmp_path / "data", 8, "train", "test")
    run = on(folder, tmp_path / "out", epochs=4, optimizer={"lr": 0.01})
    command = ["eval", "training_models:vit", str(run.folder / "tuned"), "-d"]
    done = CliRunner().invoke(cli.app, [*command, f"images/{folder}"])
    assert done.exit_code == 0 and done.stdout.strip() == f"test: {run.scores['test']:.2%}", done.output
    (folder / "train" / "dark").rename(folder / "train" / "zebra")
    (folder / "test" / "dark").rename(folder / "test" / "zebra")
    refused = CliRunner().invoke(cli.app, [*command, f"images/{folder}"])
    assert isinstance(refused.exception, DataError) and "light, zebra; trained on dark, light" in str(refused.exception)
