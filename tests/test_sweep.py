"""Sweeps: many trainings from one file, and what they come to."""

from __future__ import annotations

import json
import shutil
import statistics
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from fxtune import cli
from fxtune.data import load_data
from fxtune.errors import (
    CheckpointError,
    DataError,
    FxtuneError,
    InputError,
    MatchError,
    PlanError,
    RuleError,
    SourceError,
    TrainingError,
)
from fxtune.resources import sweeps_dir
from fxtune.sweeping import Sweep, Swept, sweep
from fxtune.sweeping.cells import Cell, cells
from fxtune.sweeping.table import chosen
from fxtune.sweeping.weightless import check_methods, saved_bytes
from small_pipelines import SIZE, pipeline_of, tokenizer_in

FILE: dict[str, Any] = {
    "name": "a small sweep",
    "model": "sweep_models:vit",
    "data": {"source": "digits", "limit": {"train": 60, "val": 40, "test": 40}},
    "recipe": {"optimizer": {"lr": 0.01}, "epochs": 3, "batch": 20, "images": {"size": 16, "crop": "none"}},
    "rules": ["linear", ["lora", "bitfit"]],
    "seeds": [0, 1],
    "grid": {"optimizer.lr": [0.01, 3e36]},
}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    return sweep(FILE, tmp_path_factory.mktemp("sweep"), processes=2, progress=False)


def test_every_training_is_in_the_table(swept: Swept) -> None:
    assert [row.method for row in swept.rows] == ["linear", "lora + bitfit"]
    table = (swept.folder / "table.md").read_text()
    for row in swept.rows:
        place = swept.folder / row.method / "optimizer.lr=0.01"
        told = [json.loads((place / f"seed {seed}" / "run.json").read_text()) for seed in (0, 1)]
        scores = [each["accuracy"]["test"] for each in told]
        assert row.scores == {"test": tuple(scores)} and row.settings == {"optimizer.lr": 0.01} and row.diverged == 2
        assert row.trained_weights == told[0]["trained_weights"] == told[1]["trained_weights"] > 0
        assert f"| {row.method} | {100 * statistics.mean(scores):.2f} ± {100 * statistics.stdev(scores):.2f} %" in table
        assert row.saved_bytes is not None and row.saved_bytes > 0
    written = json.loads((swept.folder / "results.json").read_text())["rows"]
    assert written == json.loads(json.dumps([row.to_dict() for row in swept.rows]))


def test_where_all_diverge_there_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="every training"):
        sweep({**FILE, "rules": ["linear"], "grid": {"optimizer.lr": [3e36]}, "seeds": [0]}, tmp_path, progress=False)
    assert not (tmp_path / "table.md").exists()


def test_plots_are_pictures(swept: Swept) -> None:
    for name in ("curves", "weights", "memory"):
        with Image.open(swept.folder / f"{name}.png") as image:
            pixels = torch.tensor(np.array(image.convert("L")))
            assert image.size[0] > 600 and len(pixels.unique()) > 20


def test_a_sweep_is_gone_on_with(swept: Swept, tmp_path: Path) -> None:
    """What has ended is not done again, what is missing is, and the table is the same."""
    shutil.copytree(swept.folder, tmp_path / "again")
    kept = tmp_path / "again" / "linear" / "optimizer.lr=0.01" / "seed 0" / "metrics.jsonl"
    shutil.rmtree(tmp_path / "again" / "linear" / "optimizer.lr=0.01" / "seed 1")
    before = kept.stat().st_mtime_ns
    again = sweep(FILE, tmp_path / "again", processes=1, progress=False)
    assert again.rows == swept.rows and kept.stat().st_mtime_ns == before


def test_the_command_prints_the_table(swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"fxtune": 1, **FILE}))
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(cli.app, ["sweep", str(file), "--out", str(swept.folder)])
    assert done.exit_code == 0, done.output
    assert "a small sweep" in done.output and "lora + bitfit" in done.output and "diverged" in done.output


def results_of(on_val: dict[float, list[float]]) -> list[tuple[Cell, dict[str, Any]]]:
    return [
        (Cell("lora", {}, {"lr": lr}, seed), {"accuracy": {"val": val, "test": 1 - val}, "trained_weights": 5})
        for lr, found in on_val.items()
        for seed, val in enumerate(found)
    ]


def test_the_best_mean_on_val_is_chosen() -> None:
    found = results_of({0.1: [0.9, 0.1], 0.2: [0.6, 0.7], 0.3: [0.5, 0.5]})
    best = chosen(found, ["test"], "accuracy", higher=True)
    assert best is not None and best["settings"] == {"lr": 0.2} and best["scores"] == {"test": (0.4, 1 - 0.7)}
    least = chosen(found, ["test"], "accuracy", higher=False)
    assert least is not None and least["settings"] == {"lr": 0.1}  # the first of two with a mean of 0.5


def test_a_point_that_diverged_once_is_not_chosen() -> None:
    found = results_of({0.1: [0.9, 0.9], 0.2: [0.6, 0.6]})
    found[0] = (found[0][0], {"diverged": "the loss is nan"})
    best = chosen(found, ["test"], "accuracy", higher=True)
    assert best is not None and best["settings"] == {"lr": 0.2}
    assert chosen(found[:1], ["test"], "accuracy", higher=True) is None


def test_seeds_that_diverged_are_told_and_the_others_count() -> None:
    """Where no point of the grid is whole, the row is that of the seeds that have ended."""
    found = results_of({0.1: [0.9, 0.7, 0.5], 0.2: [0.8, 0.6, 0.4]})
    for i in (0, 3, 4):
        found[i] = (found[i][0], {"diverged": "the loss is nan"})
    best = chosen(found, ["test"], "accuracy", higher=True)
    assert best is not None and best["settings"] == {"lr": 0.1} and best["scores"] == {"test": (1 - 0.7, 0.5)}


def test_another_sweep_in_the_same_folder_is_refused(swept: Swept) -> None:
    before = (swept.folder / "table.md").read_bytes()
    for changes, told in (({"settings": {"epochs": 4}}, "recipe"), ({"model": "sweep_models:resnet"}, "model")):
        with pytest.raises(CheckpointError, match=f"another sweep[^$]*differs in {told}"):
            sweep({**FILE, **changes}, swept.folder, progress=False)
    assert (swept.folder / "table.md").read_bytes() == before


def test_a_rule_file_that_says_something_else_by_now_is_refused(tmp_path: Path) -> None:
    """Else the table would tell of what was trained before; rules that are added are another matter."""
    mine = tmp_path / "mine.yaml"
    asked = {**FILE, "rules": [str(mine)], "grid": {}, "seeds": [0]}

    def swept_by(dim: int, **changes: Any) -> Swept:
        mine.write_text(
            f"fxtune: 1\nname: mine\nrules: [{{at: ffn, insert: {{res_adapter: {{dim: {dim}}}}}}}]\n# {changes}\n"
        )
        return sweep({**asked, **changes}, tmp_path / "out", processes=1, progress=False)

    (row,) = swept_by(2).rows
    with pytest.raises(CheckpointError, match=r"another sweep[^$]*the rules of mine[^$]*another name"):
        swept_by(3)
    assert swept_by(2, rules=["linear", str(mine)]).rows[1] == row
    with pytest.raises(CheckpointError, match="the rules of mine"):
        swept_by(3, rules=["linear", str(mine)])


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_folder_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(CheckpointError, match="can't be read"):
        sweep(FILE, tmp_path, progress=False)
    assert (tmp_path / "sweep.json").read_text() == text


def test_rules_by_another_name_than_their_file_s(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("fxtune: 1\nname: other\nrules: [{at: ffn, insert: {res_adapter: {dim: 2}}}]\n")
    asked = {**FILE, "rules": [str(tmp_path / "mine.yaml")], "grid": {}, "seeds": [0]}
    (row,) = sweep(asked, tmp_path / "out", processes=1, progress=False).rows
    assert row.method == "mine" and row.saved_bytes is not None


def test_of_captioned_images_the_model_of_the_pipeline_is_checked(tmp_path: Path) -> None:
    """Before any training; and what a step saves of it is told."""
    pipeline_of(tokenizer_in(tmp_path)).save_pretrained(tmp_path / "pipe")
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "one.png")
    (tmp_path / "one.txt").write_text("a red thing")
    asked = Sweep.model_validate(
        {
            "fxtune": 1,
            "name": "captions",
            "model": f"diffusers/{tmp_path / 'pipe'}",
            "data": f"captions/{tmp_path}",
            "rules": ["lora", "res_bypass"],
        }
    )
    data = load_data(asked.data)
    check_methods(asked, data)
    lora, bypass = (saved_bytes(asked, rules, data, {"batch": 1}) for rules in asked.rules)
    assert lora is not None and bypass is not None and 0 < bypass < lora
    with pytest.raises(PlanError, match="prompt rows"):
        check_methods(asked.model_copy(update={"rules": ["lora", "vpt_deep"]}), data)


def test_what_would_change_nothing_is_refused(tmp_path: Path) -> None:
    for changes in ({"grid": {"seed": [1, 2]}}, {"settings": {"seed": 1}}):
        with pytest.raises(SourceError, match="seeds: "):
            sweep({**FILE, **changes}, tmp_path / "out")
    for processes in (0, -1):
        with pytest.raises(InputError, match=f"processes={processes}"):
            sweep(FILE, tmp_path / "out", processes=processes)
    assert not (tmp_path / "out").exists()


def test_what_can_not_be_foreseen_is_told_with_its_training(tmp_path: Path) -> None:
    """As of a model that is made by values, and so not without its weights."""
    asked = {**FILE, "model": "sweep_models:resnet_by_values", "rules": ["convpass"], "grid": {}, "seeds": [0]}
    with pytest.raises(MatchError, match=r"in the training convpass/recipe/seed 0"):
        sweep(asked, tmp_path, processes=1, progress=False)


def test_cells_have_folders_of_their_own() -> None:
    asked = Sweep.model_validate(
        {
            "fxtune": 1,
            **FILE,
            "rules": ["lora", "mine/lora2.yaml", ["lora", "ssf"]],
            "grid": {"a.b": [1, 2], "c": ["x"]},
        }
    )
    found = [cell.folder for cell in cells(asked)]
    assert len(found) == len(set(found)) == 3 * 2 * 2
    assert found[0] == "lora/a.b=1,c=x/seed 0" and "lora2/a.b=1,c=x/seed 0" in found


def test_data_are_gone_through_and_drawn_anew_by_each_seed(tmp_path: Path) -> None:
    """A few samples of each class, and a further set that has other classes: as `few_shot` and `domains` have it."""
    others = {"source": "digits", "choose": ["1", "7"], "parts": {"train": 0.5, "test": 0.5}}
    asked = {
        **{name: value for name, value in FILE.items() if name != "grid"},
        "data": {"source": "digits", "limit": {"test": 40}, "tests": {"ones": others}},
        "rules": ["linear"],
        "over": {"shots": [1, 3]},
        "redraw": True,
        "splits": "all",
    }
    found = sweep(asked, tmp_path, processes=2, progress=False)
    assert [row.method for row in found.rows] == ["linear, shots=1", "linear, shots=3"]
    drawn = []
    for row in found.rows:
        for seed in (0, 1):
            told = json.loads((tmp_path / row.method / "recipe" / f"seed {seed}" / "run.json").read_text())
            drawn.append(told["training"]["samples"])
            assert {split: scores[seed] for split, scores in row.scores.items()} == {
                split: told["accuracy"][split] for split in ("test", "ones")
            }
    assert len(set(drawn)) == 4
    assert "| method | test accuracy | ones accuracy | trained weights |" in (tmp_path / "table.md").read_text()
    steps = [
        len((tmp_path / row.method / "recipe/seed 0/metrics.jsonl").read_text().splitlines()) for row in found.rows
    ]
    assert steps[1] - steps[0] == 3  # in 3 epochs 10 samples are one step each, 30 two


def test_shipped_sweeps_ask_for_model_and_data_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = [path.stem for path in sweeps_dir().glob("*.yaml")]
    assert sorted(names) == ["domains", "few_shot"]
    for name in names:
        with pytest.raises(SourceError, match=f"{name}.yaml") as raised:
            sweep(name, tmp_path)
        assert "model" in str(raised.value) and "data" in str(raised.value)
    monkeypatch.setattr(import_module("fxtune.sweeping.sweep"), "_train", lambda *_, **__: None)
    with pytest.raises(TrainingError, match="every training") as left:
        sweep("few_shot", tmp_path, model=FILE["model"], data="digits")
    assert "90 trainings" in str(left.value)
    with pytest.raises(SourceError, match="nearest: 'few_shot'"):
        sweep("few_shots", tmp_path)


REFUSALS: dict[str, tuple[dict[str, Any], type[FxtuneError], str]] = {
    "an unknown key": ({"rule": ["lora"]}, SourceError, "nearest: 'rules'"),
    "an unknown rule set": ({"rules": ["loar"]}, RuleError, "lora"),
    "an unknown setting": ({"grid": {"optimizer.rate": [1]}}, SourceError, "unknown key 'rate'"),
    "an unknown split": ({"splits": ["tset"]}, DataError, "nearest: 'test'"),
    "an unknown option of the data": ({"over": {"shot": [1]}}, SourceError, "nearest: 'shots'"),
    "more shots than there are": ({"over": {"shots": [1, 900]}}, DataError, "900 samples of each class"),
    "data without a test": (
        {"data": {"source": "digits", "parts": {"train": 1.0}}, "grid": {}, "splits": "all"},
        DataError,
        "nothing to be tested on",
    ),
    "two rule files of one name": ({"rules": ["lora", "rules/lora.yaml"]}, SourceError, "in one folder"),
    "a rule set twice": ({"rules": ["lora", "lora"]}, SourceError, "each entry once"),
    "a method that the model can't take": (
        {"model": "sweep_models:resnet", "rules": ["bitfit", "dual_res"]},
        MatchError,
        "mha",
    ),
    "a grid without val": (
        {"data": {"source": "digits", "parts": {"train": 0.8, "test": 0.2}}},
        DataError,
        "chosen on",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_come_before_any_training(case: str, tmp_path: Path) -> None:
    changes, error, told = REFUSALS[case]
    with pytest.raises(error, match=told):
        sweep({**FILE, **changes}, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
