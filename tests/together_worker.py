"""One of several processes that train together; it is started by test_training_together.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import fxtune

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


def train(rules: str, out: Path, accumulate: int) -> fxtune.Run:
    torch.set_num_threads(1)
    return fxtune.tune(
        model(),
        DATA,
        rules,
        out=out,
        recipe=RECIPE,
        settings={"accumulate": accumulate},
        options={"dtype": torch.float64},
        progress=False,
    )


def losses(out: Path) -> list[float]:
    """Of the steps of a training."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "split" not in line]


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
