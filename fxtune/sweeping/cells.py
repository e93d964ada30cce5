"""The trainings of a sweep: which there are, and one of them."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fxtune.data import Data, load_data
from fxtune.errors import FxtuneError, TrainingError
from fxtune.files import replacing
from fxtune.recipes import Recipe, recipe_for
from fxtune.sweeping.spec import Sweep
from fxtune.training import tokenizer_of, tune

RESULT, DIVERGED = "run.json", "diverged.json"


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        rules: what it is tuned by.
        options: of its data, by which rows are told apart.
        settings: the point of the grid.
        seed: of the recipe.
    """

    rules: str | list[str]
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    seed: int

    @property
    def row(self) -> str:
        """Its row in the table."""
        return ", ".join([method(self.rules), *_told(self.options)])

    @property
    def folder(self) -> str:
        """Where it lies in the sweep's folder."""
        point = ",".join(_told(self.settings)) or "recipe"
        return "/".join(part.replace("/", "_") for part in (self.row, point, f"seed {self.seed}"))


def method(rules: str | list[str]) -> str:
    """What rules are called in the table: names, and files without their folders."""
    return " + ".join(Path(name).stem for name in ([rules] if isinstance(rules, str) else rules))


def cells(sweep: Sweep) -> Iterator[Cell]:
    """All trainings of a sweep."""
    for rules, options, point, seed in itertools.product(
        sweep.rules, _points(sweep.over), _points(sweep.grid), sweep.seeds
    ):
        yield Cell(rules, options, point, seed)


def data_of(sweep: Sweep, cell: Cell) -> Data:
    """What a cell trains on."""
    return load_data(sweep.data, {**cell.options, **({"seed": cell.seed} if sweep.redraw else {})})


def recipe_of(sweep: Sweep, data: Data, changes: Mapping[str, Any]) -> Recipe:
    """How it trains, with changes."""
    return recipe_for(data.kind, sweep.recipe, changes)


def _points(values: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(values, some, strict=True)) for some in itertools.product(*values.values())]


def _told(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in values.items()]


def result_of(cell: Cell, out: Path) -> dict[str, Any] | None:
    """What the training has come to: its `run.json`, or that it has diverged; None where it has not ended."""
    for name in (RESULT, DIVERGED):
        path = out / cell.folder / name
        if path.is_file():
            found: dict[str, Any] = json.loads(path.read_text("utf-8"))
            return found
    return None


def train(sweep: Sweep, cell: Cell, out: Path, threads: int) -> None:
    """One training, in a process of its own; it goes on where it was killed."""
    torch.set_num_threads(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    sys.path.insert(0, str(Path.cwd()))
    data = data_of(sweep, cell)
    recipe = recipe_of(sweep, data, sweep.settings)
    words = tokenizer_of(sweep.tokenizer or sweep.model) if data.kind == "texts" else None
    folder = out / cell.folder
    try:
        tune(
            sweep.model,
            data,
            cell.rules,
            out=folder,
            recipe=recipe,
            settings={**cell.settings, "seed": cell.seed},
            tokenizer=words,
            progress=False,
        )
    except TrainingError as error:  # a learning rate of the grid that is too high is an answer, too
        with replacing(folder / DIVERGED) as partial:
            partial.write_text(json.dumps({"diverged": str(error)}) + "\n", "utf-8")
    except FxtuneError as error:
        told = f"{error.asked} (in the training {cell.folder})"
        raise type(error)(told, found=error.found, where=error.where, fix=error.fix) from None
