"""A row of a table: one method on one subject, the learning rate chosen on `val`, then told for three seeds."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from evidence.learning import accuracy, learn
from evidence.methods import tuned
from evidence.subjects import SUBJECTS
from fxtune.files import replacing

SEEDS = (0, 1, 2)


class Stored(ABC):
    """What is run once: its result is a file."""

    @abstractmethod
    def file(self, folder: Path) -> Path:
        """Where its result lies."""

    @abstractmethod
    def run(self, folder: Path) -> None:
        """Does it and writes what comes of it."""

    def result(self, folder: Path) -> dict[str, Any] | None:
        """What came of it, None where it has not been run."""
        file = self.file(folder)
        return json.loads(file.read_text("utf-8")) if file.is_file() else None


@dataclass(frozen=True)
class Training(Stored):
    """One training of a table."""

    subject: str
    method: str
    lr: float
    seed: int

    def file(self, folder: Path) -> Path:
        return folder / self.subject / self.method / f"lr {self.lr:g}, seed {self.seed}.json"

    def run(self, folder: Path) -> None:
        torch.set_num_threads(1)
        subject = SUBJECTS[self.subject](folder)
        model = tuned(subject, self.method, self.seed)
        losses = list(learn(model, subject.splits["train"], subject.plan, self.lr, self.seed))
        weights = [weight.numel() for weight in model.parameters() if weight.requires_grad]
        result = {
            **asdict(self),
            "about": subject.about,
            "val": accuracy(model, subject.splits["val"]),
            "test": accuracy(model, subject.splits["test"]),
            "trained": sum(weights),
            "backbone": sum(weight.numel() for weight in subject.model(0).parameters()),
            "losses": losses,
        }
        write(self.file(folder), result)


def choosing(subject: str, method: str, lrs: tuple[float, ...]) -> list[Training]:
    """The trainings from which `val` chooses the learning rate."""
    return [Training(subject, method, lr, SEEDS[0]) for lr in lrs]


def chosen(trainings: list[Training], folder: Path) -> list[Training]:
    """The best learning rate with every seed."""
    best = max(trainings, key=lambda one: _done(one, folder)["val"])
    return [Training(best.subject, best.method, best.lr, seed) for seed in SEEDS]


def write(file: Path, result: Mapping[str, Any]) -> None:
    """As JSON, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        partial.write_text(json.dumps(result) + "\n", "utf-8")


def _done(training: Training, folder: Path) -> dict[str, Any]:
    result = training.result(folder)
    assert result is not None, training
    return result
