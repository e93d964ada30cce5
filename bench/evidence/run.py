"""Runs the long tables, over the processors and to be gone on with after a kill, and writes `README.md` beside this."""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from rich.progress import track

from evidence import page
from evidence.comparing import Stored, choosing, chosen
from evidence.forms import DTYPES, METHODS, Pair
from evidence.subjects import CONVOLUTIONAL, MOST, SUBJECTS

HERE = Path(__file__).resolve().parent
FORMS = ("digits", "minilm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count(), help="trainings at a time")
    parser.add_argument(
        "--only", nargs="*", default=list(SUBJECTS), choices=list(SUBJECTS), help="some of the subjects"
    )
    asked = parser.parse_args()
    folder = HERE.parent / "results" / "evidence"
    rows = {s: MOST if s != "sprites_convnext" else CONVOLUTIONAL for s in SUBJECTS if s in asked.only}
    tried = {(s, method): choosing(s, method, lrs) for s, methods in rows.items() for method, lrs in methods.items()}
    pairs = [Pair(s, method, dtype) for s in FORMS if s in asked.only for method in METHODS for dtype in DTYPES]

    # A backbone that is trained first is then there for all.
    for subject in rows:
        SUBJECTS[subject](folder)
    _all([training for some in tried.values() for training in some], folder, asked.processes, "Learning rates")
    told = {key: chosen(trainings, folder) for key, trainings in tried.items()}
    _all([training for some in told.values() for training in some], folder, asked.processes, "Seeds")
    _all(pairs, folder, asked.processes, "Forms")
    page.write(HERE, told, pairs, folder)


def _all(todo: Sequence[Stored], folder: Path, processes: int, what: str) -> None:
    """Runs what has not been run yet."""
    left = [one for one in todo if one.result(folder) is None]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        running = [pool.submit(one.run, folder) for one in left]
        for one in track(as_completed(running), what, len(left)):
            one.result()


if __name__ == "__main__":
    main()
