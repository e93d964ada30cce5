"""What the tests of training train; a module of its own, that processes of theirs can load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.utils.tensorboard  # loaded with the rest, before processes are made of this one
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from fxtune.data import Data, load_data
from fxtune.training import Run, tune

SIZE = 16
RECIPE = {
    "optimizer": {"lr": 0.003, "weight_decay": 0.05},
    "schedule": {"warmup": 1},
    "epochs": 3,
    "batch": 16,
    "images": {"size": SIZE, "crop": "random", "flip": False},
}
DIGITS = {"source": "digits", "limit": {"train": 40, "val": 30, "test": 30}}


def vit(**changes: Any) -> nn.Module:
    """A small vision transformer, the same each time."""
    torch.manual_seed(0)
    given = {"img_size": SIZE, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 7}
    return VisionTransformer(**{**given, **changes}).eval()


def tuned_on(
    digits: Data, folder: Path, *, rules: Any = "tri_res", model: nn.Module | None = None, **settings: Any
) -> Run:
    """Trains by `RECIPE` with changes, in whose names two underscores stand for a dot."""
    return tune(
        vit(drop_rate=0.1) if model is None else model,
        digits,
        rules,
        out=folder,
        recipe=RECIPE,
        settings={name.replace("__", "."): value for name, value in settings.items()},
        progress=False,
    )


def train(folder: Path) -> None:
    """A training in a process of its own."""
    torch.set_num_threads(1)
    tuned_on(load_data(DIGITS), folder)
