"""A training that is killed at random moments ends as one that is not."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from fxtune.training.state import FILE
from killed_worker import train

KILLS = 20
STEPS, LINES = 3, 4
"""Of an epoch: its steps, and its lines of metrics."""


def started(folder: Path) -> Any:
    process = SERVER.Process(target=train, args=(folder,))
    process.start()
    return process


SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["killed_worker"])


def result(folder: Path) -> tuple[dict[str, bytes], list[str], Any]:
    """Weights, metrics and what is told of a training."""
    weights = load_file(folder / "tuned" / "tuners.safetensors")
    bits = {name: weight.numpy().tobytes() for name, weight in weights.items()}
    return bits, (folder / "metrics.jsonl").read_text().splitlines(), json.loads((folder / "run.json").read_text())


def standing(folder: Path) -> int:
    """The steps of its last state."""
    if not (folder / FILE).exists():
        return 0
    with safe_open(folder / FILE, "pt") as file:
        step: int = json.loads(file.metadata()["standing"])["step"]
        return step


def lines(folder: Path) -> int:
    """How many lines of metrics there are."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def number(folder: Path) -> int | None:
    """The file's own number: a training that goes on writes it anew before its first step."""
    path = folder / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else None


def begin_and_wait(folder: Path, more: int) -> Any:
    """A training, when it has written so many more lines of metrics than the last state has, or has ended."""
    aim, before = standing(folder) * LINES // STEPS + more, number(folder)
    process = started(folder)
    while (number(folder) == before or lines(folder) < aim) and process.is_alive():
        time.sleep(0.005)
    return process


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A training that nothing interrupts, and the seconds until its first line."""
    place = tmp_path_factory.mktemp("whole")
    here = str(Path(__file__).parent)
    with mock.patch.dict(os.environ, {"PYTHONPATH": here}):  # for the server, which else can't import the worker ahead
        started(place / "warm").join()
    begun = time.monotonic()
    process = begin_and_wait(place / "whole", 1)
    start = time.monotonic() - begun
    process.join()
    assert process.exitcode == 0
    return place / "whole", start


def test_a_training_killed_twenty_times_ends_with_the_same_bits(whole: tuple[Path, float], tmp_path: Path) -> None:
    """A fifth of the kills while it starts, the others at any moment of some epochs behind its last state."""
    expected, start = whole
    draw, reached = random.Random(0), []
    for _ in range(KILLS):
        if draw.random() < 0.2:
            process = started(tmp_path)
            time.sleep(draw.uniform(0, start))
        else:
            process = begin_and_wait(tmp_path, draw.randint(1, 3 * LINES))
            time.sleep(draw.uniform(0, 0.03))
        assert process.is_alive(), "it ended before the last kill"
        process.kill()
        process.join()
        reached.append(standing(tmp_path))
    process = started(tmp_path)
    process.join()
    assert process.exitcode == 0 and result(tmp_path) == result(expected)
    print(f"killed with so many steps in the state: {reached}")
    assert len(set(reached)) >= KILLS // 3 and reached[-1] > 0
