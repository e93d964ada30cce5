"""One step: forward, backward and the optimizer, over all pieces and processes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from fxtune.data import Split
from fxtune.dtypes import dtype_of
from fxtune.recipes import Optimizer, Recipe
from fxtune.training.layout import Layout
from fxtune.training.objective import Objective
from fxtune.training.order import Order, Pieces, seed_of
from fxtune.training.preparing import Batch, Preparation, Prepared
from fxtune.training.schedule import factor
from fxtune.training.trouble import diverged
from fxtune.tuned import TunedModel


@dataclass(frozen=True)
class Step:
    """What a step came to.

    Attributes:
        loss: the mean over its samples; None where none of them could be decoded, and nothing was changed.
        lr: the highest learning rate of its groups.
        unreadable: of each sample that this process could not decode, why and where.
    """

    loss: float | None
    lr: float
    unreadable: tuple[str, ...]


class Stepper:
    """Takes the steps of a training, one after the other.

    Args:
        layout: where the weights lie.
        optimizer: over its weights; each group has its highest learning rate at first.
        split: what it is trained on.
        preparation: what that needs.
        objective: what is made small.
        recipe: how.
        processes: accelerate's `Accelerator`.
        workers: processes that load data beside each training one.
    """

    def __init__(
        self,
        layout: Layout,
        optimizer: torch.optim.Optimizer,
        split: Split,
        preparation: Preparation,
        objective: Objective,
        recipe: Recipe,
        processes: Any,
        workers: int = 0,
    ) -> None:
        self.layout, self.optimizer, self.recipe, self.objective = layout, optimizer, recipe, objective
        self.processes, self.workers = processes, workers
        self.prepared = Prepared(split, preparation, recipe.seed, training=True)
        self.order = Order(len(split), recipe.batch, seed_of("data", recipe.seed))
        self.steps = recipe.epochs * self.order.steps
        self._dtype = dtype_of(layout.tuned)
        self._highest = [float(group["lr"]) for group in optimizer.param_groups]

    def run(self, start: int, stop: int) -> Iterator[Step]:
        """The steps from one number to another."""
        processes = self.processes
        pieces = Pieces(
            self.order, range(start, stop), processes.process_index, processes.num_processes, self.recipe.accumulate
        )
        loader = DataLoader(
            self.prepared, batch_sampler=pieces, collate_fn=self.prepared.together, num_workers=self.workers
        )
        loaded = iter(loader)
        for step in range(start, stop):
            yield self._step(step, [next(loaded) for _ in range(self.recipe.accumulate)])

    def _step(self, step: int, pieces: list[Batch]) -> Step:
        lr = self._set_rate(step)
        # The noise of dropout hangs on the step alone, so that a training can go on anywhere.
        torch.manual_seed(seed_of("step", self.recipe.seed, step, self.processes.process_index))
        unreadable = tuple(told for piece in pieces for told in piece.unreadable)
        count = self._summed([piece.weights.sum().to(self.processes.device) for piece in pieces])
        if not count:
            return Step(None, lr, unreadable)
        self.layout.computing.train()
        found = []
        for i, piece in enumerate(pieces):
            with self.layout.exchanging(i == len(pieces) - 1), self._precision():
                batch = piece.to(self.processes.device, self._dtype)
                each = self.objective.losses(self.layout.computing, batch)
                loss = (each * batch.weights).sum() / count
            found.append(loss.detach())
            reached = self._summed(found)
            if not math.isfinite(reached):
                self._diverged(step, loss, reached, lr)
            if i == 0:
                self.optimizer.zero_grad(set_to_none=True)
            # Processes' gradients are averaged, and each loss is already a share of the whole one.
            with self.layout.exchanging(i == len(pieces) - 1):
                (loss * self.processes.num_processes).backward()
        if self.recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(self._trained(), self.recipe.clip)
        self.optimizer.step()
        return Step(self._summed(found), lr, unreadable)

    def _summed(self, found: list[torch.Tensor]) -> float:
        return float(self.processes.reduce(torch.stack(found).sum(), "sum"))

    def check(self, step: int) -> None:
        """That the weights that so many steps have left are numbers.

        Raises:
            TrainingError: they are not.
        """
        trained = [weight for weight in self.layout.tuned.parameters() if weight.requires_grad]
        if not all(bool(torch.isfinite(weight).all()) for weight in trained):
            lr = max(float(group["lr"]) for group in self.optimizer.param_groups)
            raise diverged(self.layout.trained, "the weights are not finite", step, lr, self.recipe.optimizer.lr / 10)

    def _diverged(self, step: int, loss: torch.Tensor, reached: float, lr: float) -> None:
        if step == 0:
            loss.backward()  # type: ignore[no-untyped-call]
        told = f"the loss is {reached}"
        raise diverged(self.layout.trained, told, step + 1, lr, self.recipe.optimizer.lr / 10)

    def _set_rate(self, step: int) -> float:
        by = factor(self.recipe.schedule, step, self.steps, self.order.steps)
        for group, highest in zip(self.optimizer.param_groups, self._highest, strict=True):
            group["lr"] = highest * by
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.recipe.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.processes.device.type, dtype=torch.bfloat16)

    def _trained(self) -> list[nn.Parameter]:
        return [weight for group in self.optimizer.param_groups for weight in group["params"]]


def optimizer_of(tuned: TunedModel, spec: Optimizer) -> torch.optim.Optimizer:
    """The optimizer over what trains, in the groups of `TunedModel.parameter_groups`."""
    groups = tuned.parameter_groups(lr=spec.lr, weight_decay=spec.weight_decay, head_lr=spec.head_lr)
    if spec.name == "sgd":
        return torch.optim.SGD(groups, momentum=spec.momentum)
    # torch's own choice: all weights in one call, but on the CPU, where it would take them one by one in Python.
    on_cpu = all(weight.device.type == "cpu" for group in groups for weight in group["params"])
    return torch.optim.AdamW(groups, betas=spec.betas, eps=spec.eps, fused=on_cpu or None)
