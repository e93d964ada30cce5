"""A training that is killed at random moments ends as one that is not."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from fxtune.training.state import FILE
from killed_worker import train

KILLS = 20


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float, float]:
    """A training that nothing interrupts, the seconds until its first line, and those from there to its end."""
    place = tmp_path_factory.mktemp("whole")
    started(place / "warm").join()  # the server is up
    begun, process = time.monotonic(), started(place / "whole")
    while not (place / "whole" / "metrics.jsonl").exists() and process.is_alive():
        time.sleep(0.01)
    first = time.monotonic()
    process.join()
    assert process.exitcode == 0
    return place / "whole", first - begun, time.monotonic() - first


def test_a_training_killed_twenty_times_ends_with_the_same_bits(
    whole: tuple[Path, float, float], tmp_path: Path
) -> None:
    expected, start, length = whole
    draw, kills, reached, ended = random.Random(0), 0, set(), 0
    while kills < KILLS:
        folder, patience, before = tmp_path / str(ended), 1.0, 0
        while True:
            process = started(folder)
            process.join(draw.uniform(0.8 * start, (start + length / 8) * patience))
            if not process.is_alive():
                break
            process.kill()
            process.join()
            kills += 1
            step = standing(folder)
            reached.add(step)
            # A machine that has become slower must not kill each of them before its first epoch.
            patience, before = 1.2 * patience if step == before else 1.0, step
        assert process.exitcode == 0
        assert result(folder) == result(expected)
        ended += 1
    print(f"{kills} kills in {ended} trainings, at {len(reached)} different states: {sorted(reached)}")
    assert len(reached) >= KILLS // 3
