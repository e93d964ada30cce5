"""How good a model is on a split."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from fxtune.data import Data, DataLike, load_data
from fxtune.dtypes import dtype_of
from fxtune.libraries import library
from fxtune.modes import in_mode
from fxtune.recipes import Recipe, RecipeLike, recipe_for
from fxtune.training.objective import Classification, Objective
from fxtune.training.order import Key
from fxtune.training.preparing import Preparation, Prepared, Tokenizer, preparation


def evaluate(
    model: nn.Module,
    data: DataLike | Data,
    *,
    split: str = "test",
    recipe: RecipeLike | None = None,
    tokenizer: Tokenizer | None = None,
) -> float:
    """The share of a split's samples whose class the model tells rightly. A warning names what could not be decoded.

    Args:
        model: a model for classification, tuned or not; it is in evaluation mode meanwhile.
        data: what `load_data` takes, or data.
        split: which split of theirs.
        recipe: what is done to images and sentences, and the size of a batch: that of the training. The usual one for
            such data by default.
        tokenizer: for sentences.

    Raises:
        DataError: there is no such split, or nothing in it could be decoded.
        InputError: the model gives no logits of so many classes.
        TrainingError: its logits are not finite.
    """
    known = data if isinstance(data, Data) else load_data(data)
    how = recipe_for(known.kind, recipe)
    prepared = preparation(known, how, tokenizer, accepts_of(model))
    score, unreadable = measured(model, known, split, prepared, Classification(len(known.classes)), how, accelerator())
    if unreadable:
        told = "\n  ".join(unreadable)
        warnings.warn(f"{len(unreadable):,} samples could not be decoded and were left out:\n  {told}", stacklevel=2)
    return score


def measured(
    model: nn.Module,
    data: Data,
    split: str,
    preparation: Preparation,
    objective: Objective,
    recipe: Recipe,
    processes: Any,
    workers: int = 0,
) -> tuple[float, tuple[str, ...]]:
    """The measure of a split over all processes, each with its share of the samples; and what could not be decoded,
    and why, which is left out."""
    samples = data.split(split)
    prepared = Prepared(samples, preparation, recipe.seed, training=False)
    loader = DataLoader(
        prepared,
        batch_sampler=list(_batches(len(samples), recipe.batch, processes)),
        collate_fn=prepared.together,
        num_workers=workers,
    )
    device = next(model.parameters()).device
    metric = objective.metric().to(device)
    unreadable: list[str] = []
    with in_mode(model, training=False), torch.no_grad():
        for batch in loader:
            unreadable += batch.unreadable
            objective.update(metric, model, batch.to(device, dtype_of(model)), samples.among)
    return objective.result(metric), of_all(unreadable)


def of_all(told: list[str]) -> tuple[str, ...]:
    """What any process tells, each once."""
    utilities = library("accelerate.utils", what="Training", extra="train")
    return tuple(sorted(set(utilities.gather_object(told))))


def accepts_of(model: nn.Module) -> list[str]:
    """The names of the model's inputs."""
    return list(inspect.signature(model.forward).parameters)


def accelerator() -> Any:
    """accelerate's view of device and processes."""
    return library("accelerate", what="Training", extra="train").Accelerator()


def _batches(samples: int, size: int, processes: Any) -> Iterator[list[Key]]:
    """This process's share of the samples, in batches: as many as any other has, the last of nothing that counts
    where there is nothing left."""
    own = range(processes.process_index, samples, processes.num_processes)
    most = -(-samples // processes.num_processes)
    for start in range(0, most, size):
        yield [Key(0, index) for index in own[start : start + size]] or [Key(0, 0, counts=False)]
