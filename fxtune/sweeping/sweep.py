"""`sweep`: many trainings from one file, over the processors, and the table and plots of what they come to."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from fxtune import source
from fxtune.accounting import memory
from fxtune.data import Data, load_data
from fxtune.errors import DataError, FxtuneError, SourceError, TrainingError
from fxtune.files import replacing
from fxtune.names import resolve
from fxtune.progress import progress as with_bar
from fxtune.recipes import load_recipe
from fxtune.resources import sweeps_dir
from fxtune.rules import load as load_rules
from fxtune.source import Document, nearest
from fxtune.sweeping.cells import Cell, cells, data_of, method, result_of, train
from fxtune.sweeping.drawing import plots
from fxtune.sweeping.spec import Sweep
from fxtune.sweeping.table import Row, chosen, drawn, markdown


@dataclass(frozen=True)
class Swept:
    """What a sweep has found. Print it.

    Attributes:
        sweep: what was asked.
        splits: what is told of.
        measure: what the scores are.
        rows: a method each, in the order of the file; those that diverged everywhere are left out.
        folder: with `results.json`, `table.md`, the plots, and each training's own folder.
    """

    sweep: Sweep
    splits: tuple[str, ...]
    measure: str
    rows: tuple[Row, ...]
    folder: Path

    def __rich__(self) -> Table:
        return drawn(self.sweep.name, self.splits, self.measure, self.rows)

    def __str__(self) -> str:
        return markdown(self.sweep.name, self.splits, self.measure, self.rows)


def sweep(
    file: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    model: str | None = None,
    data: str | Mapping[str, Any] | None = None,
    processes: int | None = None,
    progress: bool = True,
) -> Swept:
    """Trains by every rule set, seed and setting that a file names, and tells what each comes to.

    Of a grid's points, each method takes the one with the best mean on `val` over the seeds. Called again it goes on:
    trainings that have ended are not done again, and a killed one goes on where it was.

    Args:
        file: a shipped sweep's name (``few_shot``, ``domains``); the path of a YAML file; or a mapping of the same
            form, in which ``fxtune: 1`` and ``name`` may be left out.
        out: folder for the trainings, `results.json`, `table.md`, `curves.png`, `weights.png` and `memory.png`.
        model: in the place of the file's, which a shipped sweep leaves open.
        data: likewise.
        processes: how many train at the same time; as many as there are processors by default.
        progress: whether a terminal shows how far it is.

    Raises:
        SourceError, DataError, RuleError: what the file names is not there; nothing was trained then.
        TrainingError: every training has diverged.
    """
    asked, folder = _asked(file, model, data), Path(out)
    known = load_data(asked.data)
    splits = _splits(asked, known)
    _check(asked, known, splits)
    todo = list(cells(asked))
    _train(asked, [cell for cell in todo if result_of(cell, folder) is None], folder, processes, bar=progress)
    measure = "loss" if known.kind == "captions" else "accuracy"
    rows, folders = [], {}
    for row in dict.fromkeys(cell.row for cell in todo):
        own = [(cell, result) for cell in todo if cell.row == row and (result := result_of(cell, folder)) is not None]
        best = chosen(own, splits, measure, higher=measure == "accuracy")
        if best is None:
            continue
        folders[row] = best.pop("folders")
        diverged = sum(measure not in result for _, result in own)
        rows.append(Row(row, saved_bytes=_saved(asked, own[0][0].rules, known), diverged=diverged, **best))
    if not rows:
        raise TrainingError(
            "every training of this sweep has diverged",
            found=f"{len(todo)} trainings",
            where=str(folder),
            fix="try lower learning rates: `grid: {optimizer.lr: [...]}`",
        )
    swept = Swept(asked, splits, measure, tuple(rows), folder)
    _write(swept)
    plots(folder, asked.name, splits[0], measure, rows, folders)
    return swept


def _asked(file: str | Path | Mapping[str, Any], model: str | None, data: str | Mapping[str, Any] | None) -> Sweep:
    document = _document(file)
    given = {name: value for name, value in (("model", model), ("data", data)) if value is not None}
    if not given:
        return document.validate(Sweep)
    return source.from_data({**document.data, **given}, f"{document.name}, changed").validate(Sweep)


def _document(file: str | Path | Mapping[str, Any]) -> Document:
    if isinstance(file, Mapping):
        return source.from_data({"fxtune": 1, "name": "sweep", **file}, "<sweep>")
    shipped = {path.stem: path for path in sorted(sweeps_dir().glob("*.yaml"))}
    if str(file) in shipped:
        return source.load(shipped[str(file)])
    path = Path(file).expanduser()
    if not path.exists() and not path.suffix:
        near = nearest(str(file), shipped, 1)
        raise SourceError(
            f"no sweep is called {str(file)!r}",
            found=f"the sweeps {', '.join(shipped)}" + (f"; nearest: {near[0]!r}" if near else ""),
            fix="name one of them, or the path of a file of your own",
        )
    return source.load(path)


def _splits(asked: Sweep, data: Data) -> tuple[str, ...]:
    """The splits that are told."""
    if asked.splits != "all":
        return tuple(asked.splits)
    found = tuple(name for name in data.splits if name not in ("train", "val"))
    if not found:
        raise DataError(
            f"{data.source} has nothing to be tested on",
            found=f"the splits {', '.join(data.splits)}",
            fix="divide the data: `parts: {train: 0.8, test: 0.2}`",
        )
    return found


def _check(asked: Sweep, data: Data, splits: Sequence[str]) -> None:
    """What can be told before hours of training."""
    for split in splits:
        data.split(split)
    if any(len(values) > 1 for values in asked.grid.values()) and "val" not in data.splits:
        raise DataError(
            "the point of a grid is chosen on a split `val`",
            found=f"the splits {', '.join(data.splits)}",
            where=data.source,
            fix="divide the data: `parts: {train: 0.8, val: 0.2}`; or leave `grid` out",
        )
    for rules in asked.rules:
        load_rules(rules)
    for cell in cells(asked):
        load_recipe(asked.recipe, {**asked.settings, **cell.settings, "seed": cell.seed})
    for cell in {repr(cell.options): cell for cell in cells(asked)}.values():
        data_of(asked, cell)


def _train(asked: Sweep, todo: list[Cell], folder: Path, processes: int | None, *, bar: bool) -> None:
    processors = os.cpu_count() or 1
    count = min(processes or processors, max(1, len(todo)))
    threads = max(1, processors // count)
    # A process of its own for each, which forgets all when it ends: that a cell ran before another changes nothing.
    with ProcessPoolExecutor(count, _processes(), max_tasks_per_child=1) as pool:
        running = [pool.submit(train, asked, cell, folder, threads) for cell in todo]
        try:
            ended = as_completed(running)
            for one in with_bar(ended, "Training", len(todo)) if bar else ended:
                one.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _processes() -> Any:
    """How processes are started: where the system can, from one that has imported all that they need."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fxtune.sweeping.cells", "accelerate", "torchmetrics.classification"])
    return context


def _saved(asked: Sweep, rules: str | list[str], data: Data) -> int | None:
    """Bytes that a step saves for backward; None where no model card knows the inputs."""
    recipe = load_recipe(asked.recipe, asked.settings)
    classes = len(data.classes) or None
    try:
        built = resolve(asked.model, meta=True, classifies=None if data.kind == "captions" else data.kind)
        report = memory(built, rules, batch=recipe.batch, num_classes=classes)
        return report[method(rules)].saved_for_backward
    except FxtuneError:
        return None


def _write(swept: Swept) -> None:
    results = {
        "sweep": swept.sweep.model_dump(mode="json"),
        "measure": swept.measure,
        "rows": [row.to_dict() for row in swept.rows],
    }
    for name, text in (("results.json", json.dumps(results, indent=2) + "\n"), ("table.md", str(swept))):
        with replacing(swept.folder / name) as partial:
            partial.write_text(text, "utf-8")
