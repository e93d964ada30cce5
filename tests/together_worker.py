"""One of several processes that train together; it is started by test_training_together.py."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import fxtune
from fxtune.training.steps import Step, Stepper

RECIPE: dict[str, Any] = {
    "optimizer": {"lr": 0.003},
    "epochs": 4,
    "batch": 9,
    "images": {"size": 16, "crop": "random", "flip": True},
}
DATA = {"source": "digits", "limit": {"train": 41, "val": 15, "test": 7}}
"""Five steps an epoch, the last of five samples."""


def model() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3).double().eval()


class Stopped(Exception):
    """A training ends before its time."""


def train(rules: str, out: Path, *, shard: bool = False, stop: int | None = None, **settings: Any) -> fxtune.Run:
    """Trains, or raises `Stopped` after so many epochs."""
    torch.set_num_threads(1)
    steps = Stepper.run

    def run(stepper: Stepper, start: int, end: int) -> Iterator[Step]:
        if stop is not None and start >= stop * stepper.order.steps:
            raise Stopped
        return steps(stepper, start, end)

    with mock.patch.object(Stepper, "run", run):
        return fxtune.tune(
            model(),
            DATA,
            rules,
            out=out,
            recipe=RECIPE,
            settings=settings,
            options={"dtype": torch.float64},
            shard=shard,
            progress=False,
        )


def losses(out: Path) -> list[float]:
    """Of the steps of a training."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "split" not in line]


if __name__ == "__main__":
    for rules, out, options in json.loads(sys.argv[1]):
        with contextlib.suppress(Stopped):
            train(rules, Path(out), **options)
