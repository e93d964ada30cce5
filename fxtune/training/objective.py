"""What a training makes small, and what it is measured by."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxtune.errors import DataError, InputError, TrainingError
from fxtune.libraries import library
from fxtune.training.preparing import Batch


class Objective(ABC):
    """What one kind of training asks of a model.

    Attributes:
        measure: what a split is measured by, in a word.
        higher: whether more of it is better.
    """

    measure: ClassVar[str]
    higher: ClassVar[bool]

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss of each sample, B, in float32 at least."""

    @abstractmethod
    def metric(self) -> Any:
        """A metric of torchmetrics, which gathers over batches and processes."""

    @abstractmethod
    def update(self, metric: Any, model: nn.Module, batch: Batch, among: Sequence[int] | None) -> None:
        """Takes a batch into the metric; samples that do not count are left out.

        Args:
            metric: what `metric` made.
            model: in evaluation mode, without gradients.
            batch: samples.
            among: the classes that an answer is chosen from; None for all.
        """

    @abstractmethod
    def result(self, metric: Any) -> float:
        """What it has come to over all batches and processes."""

    def better(self, found: float, best: float | None) -> bool:
        """Whether a measure is better than the best so far."""
        if math.isnan(found):
            return False
        return best is None or (found > best if self.higher else found < best)


class Classification(Objective):
    """Cross-entropy, and the share of right answers (top-1).

    Args:
        classes: how many.
        smoothing: of the labels.
    """

    measure = "accuracy"
    higher = True

    def __init__(self, classes: int, smoothing: float = 0.0) -> None:
        self.classes, self.smoothing = classes, smoothing

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        found = self._logits(model, batch)
        wide = torch.promote_types(found.dtype, torch.float32)
        return F.cross_entropy(found.to(wide), batch.labels, reduction="none", label_smoothing=self.smoothing)

    def metric(self) -> Any:
        torchmetrics = library("torchmetrics.classification", what="Evaluation", extra="train")
        return torchmetrics.MulticlassStatScores(self.classes, average="micro")

    def update(self, metric: Any, model: nn.Module, batch: Batch, among: Sequence[int] | None) -> None:
        logits, counts = self._logits(model, batch), batch.weights > 0
        if not counts.any():
            return  # nothing but what fills, or what can't be decoded
        if not bool(torch.isfinite(logits[counts]).all()):
            raise TrainingError(
                "the model's logits are not finite",
                found="NaN or infinite values, from which no class can be told",
                fix="train with a lower learning rate, in another folder: optimizer.lr",
            )
        metric.update(answers(logits, among)[counts], batch.labels[counts])

    def result(self, metric: Any) -> float:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The ``compute`` method")  # a process may have had nothing that counts
            counted = metric.compute()
        right, _, _, wrong, _ = counted.tolist()  # counts: torchmetrics' own accuracy is rounded to float32
        if not right + wrong:
            raise DataError("accuracy is a share of something", found="no sample that could be decoded")
        return float(right / (right + wrong))

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the model answers, B x classes.

        Raises:
            InputError: something else.
        """
        output: Any = model(*batch.args, **batch.kwargs)
        found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[1] != self.classes:
            told = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(output).__name__
            raise InputError(
                f"the model gives no logits of {self.classes} classes",
                found=told,
                fix="take a model for classification, and a head for so many: apply(..., num_classes=...)",
            )
        return found


def answers(logits: Tensor, among: Sequence[int] | None) -> Tensor:
    """The class of the largest logit, B; among some classes alone where a test set has no others."""
    if among is None:
        return logits.argmax(-1)
    chosen = torch.tensor(among, device=logits.device)
    return chosen[logits[:, chosen].argmax(-1)]
