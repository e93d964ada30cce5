"""Several processes compute what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fxtune
from together_worker import losses, model, train


def launched(processes: int, rules: str, out: Path, accumulate: int = 1) -> None:
    """Trains in so many processes, as `accelerate launch --cpu` starts them."""
    worker = Path(__file__).with_name("together_worker.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", worker]
    done = subprocess.run(
        [*map(str, command), rules, str(out), str(accumulate)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize(("rules", "accumulate"), [("tri_res", 1), ("res_bypass", 1), ("tri_res", 3)])
def test_two_processes_train_as_one(rules: str, accumulate: int, tmp_path: Path) -> None:
    alone = train(rules, tmp_path / "one", 1)
    launched(2, rules, tmp_path / "two", accumulate)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 20 and two == pytest.approx(one, rel=1e-10)
    assert one[-1] < one[0]
    tuned = fxtune.load(model(), tmp_path / "two" / "tuned")
    for name, weight in alone.tuned.state_dict().items():
        assert torch.allclose(tuned.state_dict()[name], weight, rtol=1e-7, atol=1e-9), name


def test_what_two_processes_began_one_goes_on_with(tmp_path: Path) -> None:
    """The number of processes is no part of a training."""
    launched(2, "tri_res", tmp_path)
    run = train("tri_res", tmp_path, 1)
    assert run.epochs == 4 and len(losses(tmp_path)) == 20
