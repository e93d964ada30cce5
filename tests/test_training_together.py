"""Several processes compute what one does, each with all weights (DDP) or with its part of them (FSDP2)."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fxtune
from together_worker import Stopped, losses, model, train

SHARD = {"shard": True}
MANY = {**SHARD, "accumulate": 2, "clip": 0.5, "checkpointing": True}
WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "ddp tri_res": ("tri_res", {}),
    "ddp res_bypass": ("res_bypass", {}),
    "ddp in pieces": ("tri_res", {"accumulate": 3}),
    "fsdp tri_res": ("tri_res", SHARD),
    "fsdp res_bypass": ("res_bypass", SHARD),
    "fsdp full": ("full", MANY),
}
"""What two processes train from beginning to end: rules, and further options of `train`."""

BEGUN = {"ddp begins": {}, "fsdp begins": SHARD}
ENDED = {"fsdp ends": SHARD}
"""What two processes train the first half of, and the second; one process does the other."""


def alone(rules: str, out: Path, **options: Any) -> None:
    with contextlib.suppress(Stopped):
        train(rules, out, **options)


def launch(jobs: list[tuple[str, str, dict[str, Any]]]) -> None:
    """Two processes do all of this, as `accelerate launch --cpu` starts them."""
    worker = Path(__file__).with_name("together_worker.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", worker]
    done = subprocess.run(
        [*map(str, command), json.dumps(jobs)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
        capture_output=True,
        text=True,
        timeout=1000,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process and two have trained, each training in a folder of its name."""
    place = tmp_path_factory.mktemp("trained")
    for name in ENDED:
        alone("tri_res", place / name, stop=2)
    whole = [(rules, str(place / name), options) for name, (rules, options) in WHOLE.items()]
    begun = [("tri_res", str(place / name), {**options, "stop": 2}) for name, options in BEGUN.items()]
    launch([*whole, *begun, *(("tri_res", str(place / name), options) for name, options in ENDED.items())])
    for name in BEGUN:
        alone("tri_res", place / name)
    alone("tri_res", place / "tri_res")
    alone("res_bypass", place / "res_bypass")
    alone("full", place / "full", clip=0.5)
    return place


@pytest.mark.parametrize("name", [*WHOLE, *BEGUN, *ENDED])
def test_two_processes_train_as_one(name: str, folder: Path) -> None:
    """Also where others went on with what some began: the number of processes is no part of a training."""
    rules = WHOLE[name][0] if name in WHOLE else "tri_res"
    one, two = losses(folder / rules), losses(folder / name)
    assert len(one) == 20 and two == pytest.approx(one, rel=1e-10)
    assert one[-1] < one[0]
    scores = [json.loads((folder / each / "run.json").read_text())["accuracy"] for each in (rules, name)]
    assert scores[0] == scores[1]
    expected, found = (fxtune.load(model(), folder / each / "tuned").state_dict() for each in (rules, name))
    for weight in expected:
        assert torch.allclose(found[weight], expected[weight], rtol=1e-7, atol=1e-9), weight
