"""What test_training_killed.py forks its trainings from: all is imported and captured once, and no backward has run."""

from __future__ import annotations

from pathlib import Path

import accelerate  # loaded with the rest, before processes are made of this one
import torch
import torchmetrics.classification
import torchvision.transforms.v2

import fxtune
from fxtune.data import load_data
from training_models import tuned_on, vit

__all__ = ["accelerate", "torchmetrics", "torchvision", "train"]

DIGITS = load_data({"source": "digits", "limit": {"train": 40, "val": 8, "test": 8}})

fxtune.apply(vit(drop_rate=0.1), "tri_res", num_classes=10)


def train(folder: Path) -> None:
    """Sixty epochs of three steps."""
    torch.set_num_threads(1)
    tuned_on(DIGITS, folder, epochs=60)
