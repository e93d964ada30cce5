"""What a training has come to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fxtune.errors import CheckpointError
from fxtune.files import replacing
from fxtune.tuned import TunedModel

TUNED, BEST, RESULT = "tuned", "best.safetensors", "run.json"
"""What a training leaves in its folder: the tuned model, the weights of the best epoch so far, and what came of it."""


@dataclass(frozen=True)
class Run:
    """A training that has ended.

    Attributes:
        folder: where it lies; `fxtune.load(model, folder / "tuned")` gives the model back.
        tuned: the trained model, in evaluation mode.
        measure: ``accuracy``, between 0 and 1, or ``loss``.
        scores: that of each split but the training one.
        epochs: how many were trained.
        best_epoch: the one, counted from 1, whose weights these are; None without `val`: those of the last.
        trained_weights: how many weights trained.
        unreadable: each sample that could not be decoded, and why; they were left out.
        pipeline: for captions, the pipeline with the tuned model in it.
    """

    folder: Path
    tuned: TunedModel = field(repr=False)
    measure: str
    scores: Mapping[str, float]
    epochs: int
    best_epoch: int | None
    trained_weights: int
    unreadable: tuple[str, ...] = ()
    pipeline: Any = field(default=None, repr=False)

    def __str__(self) -> str:
        form = ".2%" if self.measure == "accuracy" else ".4g"
        told = ", ".join(f"{name} {score:{form}}" for name, score in self.scores.items())
        lines = [f"{self.measure}: {told or 'no split to test on'}; {self.trained_weights:,} weights trained"]
        if self.best_epoch is not None:
            lines.append(f"the weights of epoch {self.best_epoch} of {self.epochs}, the best on val")
        if self.unreadable:
            lines.append(f"{len(self.unreadable):,} samples could not be decoded and were left out:")
            lines += [f"  {told}" for told in self.unreadable]
        return "\n".join(lines)


def write_result(run: Run, training: Mapping[str, Any]) -> None:
    """Writes `run.json`.

    Raises:
        CheckpointError: it can't be written.
    """
    result = {
        "fxtune": version("fxtune"),
        "training": dict(training),
        run.measure: dict(run.scores),
        "epochs": run.epochs,
        "best_epoch": run.best_epoch,
        "trained_weights": run.trained_weights,
        "unreadable": list(run.unreadable),
    }
    try:
        with replacing(run.folder / RESULT) as partial:
            partial.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    except OSError as error:
        raise CheckpointError(
            "what a training reached can't be written", found=str(error), where=str(run.folder)
        ) from None


def told_beside(tuned: Path) -> dict[str, Any] | None:
    """What `run.json` says of the training that left this model; None where it lies elsewhere."""
    path = tuned.parent / RESULT
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    training = found.get("training") if isinstance(found, dict) else None
    return training if isinstance(training, dict) and {"recipe", "classes"} <= set(training) else None
