"""The examples of `demo/` for other people's training loops run, learn, and leave what loads again."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

import fxtune

DEMO = Path(__file__).resolve().parents[1] / "demo"
EXAMPLES = {"with_trainer": ("tuned", "out/trainer/tuned"), "with_lightning": ("classifier", "out/lightning")}


@pytest.mark.filterwarnings("ignore")  # what those libraries say of workers and of a machine without a GPU
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_tuned_model_trains_where_others_train(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    torch.manual_seed(0)
    left: dict[str, Any] = runpy.run_path(str(DEMO / f"{name}.py"), run_name="__main__")
    print(f"{name}: {left['accuracy']:.1%}")
    assert left["accuracy"] > 0.7  # by chance 10 %
    holder, folder = EXAMPLES[name]
    tuned = getattr(left[holder], "tuned", left[holder]).cpu().eval()
    again = fxtune.load(left["model"], tmp_path / folder).eval()
    images = left["images"][:8]
    with torch.no_grad():
        assert torch.equal(again(images).logits, tuned(images).logits)


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_is_short(name: str) -> None:
    assert len([line for line in (DEMO / f"{name}.py").read_text().splitlines() if line.strip()]) < 40
