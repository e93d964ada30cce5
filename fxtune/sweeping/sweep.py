"""`sweep`: many trainings from one file, over the processors, and the table and plots of what they come to."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from fxtune import source
from fxtune.data import Data, load_data
from fxtune.errors import CheckpointError, DataError, InputError, SourceError, TrainingError
from fxtune.files import replacing
from fxtune.progress import progress as with_bar
from fxtune.resources import sweeps_dir
from fxtune.rules import load as load_rules
from fxtune.saving import rule_files
from fxtune.source import Document, nearest
from fxtune.sweeping.cells import Cell, cells, data_of, method, recipe_of, result_of, train
from fxtune.sweeping.drawing import plots
from fxtune.sweeping.spec import Sweep
from fxtune.sweeping.table import Row, chosen, drawn, markdown
from fxtune.sweeping.weightless import check_methods, saved_bytes


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
    trainings that have ended are not done again, and a killed one goes on where it was. Rules, seeds and points of the
    grid may be added meanwhile.

    The trainings run in processes of their own, which import the calling script: in a script, call it under
    ``if __name__ == "__main__":``.

    Args:
        file: a shipped sweep's name (``few_shot``, ``domains``); the path of a YAML file; or a mapping of the same
            form, in which ``fxtune: 1`` and ``name`` may be left out.
        out: folder for the trainings, `results.json`, `table.md`, `curves.png`, `weights.png` and `memory.png`.
        model: in the place of the file's, which a shipped sweep leaves open.
        data: likewise.
        processes: how many train at the same time; by default as many as there are processors, or one where there is a
            GPU.
        progress: whether a terminal shows how far it is.

    Raises:
        SourceError, DataError, RuleError: what the file names is not there; nothing was trained then.
        MatchError, PlanError: a method does not work on the model; nothing was trained then, unless the model can't be
            captured without its weights.
        CheckpointError: the folder holds another sweep.
        InputError: less than one process.
        TrainingError: every training has diverged, or a process was killed.
    """
    if processes is not None and processes < 1:
        raise InputError("a sweep needs a process", found=f"processes={processes}", fix="give 1 at least, or None")
    asked, folder = _asked(file, model, data), Path(out)
    known = load_data(asked.data)
    splits = _splits(asked, known)
    _check(asked, known, splits)
    _begin(asked, known, folder)
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
        saved = saved_bytes(asked, own[0][0].rules, known, best["settings"])
        rows.append(Row(row, saved_bytes=saved, diverged=diverged, **best))
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
    if not given or not isinstance(document.data, Mapping):
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


ASKED, RULES = "sweep.json", "rules"
"""What the trainings of a folder have in common, and in it what the rules of each method say."""


def _begin(asked: Sweep, data: Data, folder: Path) -> None:
    """Writes what is asked, or sees that it is what was asked before.

    Raises:
        CheckpointError: it is another sweep, or one by rules of the same name that say something else.
    """
    recipe = recipe_of(asked, data, asked.settings).model_dump(mode="json")
    shared = {name: getattr(asked, name) for name in ("model", "data", "redraw", "tokenizer")} | {"recipe": recipe}
    path, now = folder / ASKED, json.loads(json.dumps(shared))
    rules = {method(names): _resolved(names) for names in asked.rules}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = _written(path)
        then = now if found is None else found
        known = then.get(RULES, {})
        odd = [name for name in now if then.get(name) != now[name]]
        odd += [f"the rules of {name}" for name, own in rules.items() if known.get(name, own) != own]
        if odd:
            raise CheckpointError(
                "this folder holds another sweep",
                found=f"it differs in {', '.join(odd)}",
                where=str(path),
                fix="give what it was begun with, name another folder, or give changed rules a file of another name",
            )
        with replacing(path) as partial:
            partial.write_text(json.dumps({**now, RULES: {**known, **rules}}, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise CheckpointError("this folder can't be written to", found=str(error), where=str(folder)) from None


def _resolved(names: str | list[str]) -> list[dict[str, Any]]:
    """What rules say, as plain data: a file of the same name may say something else by now."""
    return [file.model_dump(mode="json", by_alias=True) for file in rule_files(load_rules(names))]


def _written(path: Path) -> dict[str, Any] | None:
    """What was asked before; None if nothing was.

    Raises:
        CheckpointError: it can't be read.
    """
    if not path.exists():
        return None
    found: Any
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        found = error
    if not isinstance(found, dict):
        raise CheckpointError(
            "this folder's sweep can't be read",
            found=str(found),
            where=str(path),
            fix="name another folder, or delete this file if the trainings beside it are those of this sweep",
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
    folders: dict[str, Cell] = {}
    for cell in cells(asked):
        recipe_of(asked, data, {**asked.settings, **cell.settings, "seed": cell.seed})
        if (other := folders.setdefault(cell.folder.casefold(), cell)) is not cell:
            raise SourceError(
                "two trainings of this sweep would lie in one folder",
                found=f"{cell.folder}, by {other.rules} and by {cell.rules}",
                fix="give the rule files different names",
            )
    for cell in {repr(cell.options): cell for cell in cells(asked)}.values():
        data_of(asked, cell)
    check_methods(asked, data)


def _train(asked: Sweep, todo: list[Cell], folder: Path, processes: int | None, *, bar: bool) -> None:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(processes or (1 if torch.accelerator.is_available() else processors), max(1, len(todo)))
    threads = max(1, processors // count)
    # A process of its own for each, which forgets all when it ends: that a cell ran before another changes nothing.
    with ProcessPoolExecutor(count, _processes(), max_tasks_per_child=1) as pool:
        running = [pool.submit(train, asked, cell, folder, threads) for cell in todo]
        try:
            ended = as_completed(running)
            for one in with_bar(ended, "Training", len(todo)) if bar else ended:
                one.result()
        except BrokenProcessPool:
            raise TrainingError(
                "a process of this sweep was killed",
                found="as the system does where memory runs out",
                where=str(folder),
                fix="train fewer at a time: processes=1 (--processes 1). In a script, call `sweep` under "
                '`if __name__ == "__main__":`',
            ) from None
        except BaseException:
            for future in running:
                future.cancel()
            raise


def _processes() -> Any:
    """How processes are started: where the system can, from one that has imported all that they need."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fxtune.sweeping.cells", "accelerate", "torchmetrics.classification"])
    return context


def _write(swept: Swept) -> None:
    results = {
        "sweep": swept.sweep.model_dump(mode="json"),
        "measure": swept.measure,
        "rows": [row.to_dict() for row in swept.rows],
    }
    for name, text in (("results.json", json.dumps(results, indent=2) + "\n"), ("table.md", str(swept))):
        with replacing(swept.folder / name) as partial:
            partial.write_text(text, "utf-8")
