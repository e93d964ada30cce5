"""MultiTask: several bypasses with their heads on one backbone, as one module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxtune.errors import InputError
from fxtune.names import resolve as resolve_model
from fxtune.source import nearest
from fxtune.splitting import over, tensors_of
from fxtune.tasks.alike import kind_of
from fxtune.tasks.batched import Batched
from fxtune.tasks.joining import Task, check_name, check_weights, halves_of, tuned_models
from fxtune.tasks.merging import merge, without
from fxtune.tasks.parts import moved_like, own_part, share_frozen, used_by
from fxtune.tracing import CallSignature, Region
from fxtune.tuned import TunedModel, tensors


def multitask(model: nn.Module | str, tasks: Mapping[str, Task]) -> MultiTask:
    """Several tuned models of one backbone as one module, with one pass of the backbone for all of them.

        >>> many = fxtune.multitask(model, {"birds": tuned_birds, "cars": "out/cars"})
        >>> many(images)["birds"]  # what tuned_birds(images) gives
        >>> many(images, task=["cars", "birds"])  # one result for each image

    Args:
        model: the backbone: the model that the tasks were tuned on, or its name.
        tasks: by name, models with a detached bypass (``rules="res_bypass"``), or the folders where they were saved.

    Raises:
        PlanError: a task has no bypass, or was tuned on another backbone.
        CheckpointError: a folder holds no checkpoint, or one of another backbone.
        InputError: there is no task, or one is something else.
    """
    backbone = resolve_model(model) if isinstance(model, str) else model
    if isinstance(backbone, TunedModel):
        backbone = backbone.strip()
    models, weights = tuned_models(backbone, tasks), dict(tensors(backbone))
    for name, tuned in models.items():
        check_weights(name, halves_of(name, tuned).trunk, weights)
    return MultiTask(models)


@dataclass
class _Branch:
    """What a task has beside its branch: which results of the trunk it reads, whether each has a row a sample (None
    where that is not known), and how its results are put together."""

    reads: list[int]
    rows: list[bool | None]
    signature: CallSignature


class MultiTask(nn.Module):
    """One trunk, and a branch (bypass, tail and head) for each task.

    It holds what it needs of the tuned models, over the same memory: what trains there changes here and the other way
    round, until one of them is moved (``.to``). Gradients flow to each task's own weights. Tasks whose branches compute
    the same with weights of the same shapes run as one batched computation, the others one by one. The trunk stays in
    evaluation mode, and runs without gradients. It takes the inputs that the tasks' models were captured for.

    Args:
        tasks: tuned models by name.
    """

    trunk: Region
    branches: nn.ModuleDict

    def __init__(self, tasks: Mapping[str, TunedModel]) -> None:
        super().__init__()
        self.branches = nn.ModuleDict()
        self._known: dict[str, _Branch] = {}
        self._batched: dict[tuple[str, ...], Batched] = {}
        if not tasks:
            raise InputError("there are no tasks", fix='name one at least: {"birds": tuned}')
        for name, tuned in tasks.items():
            self.add(name, tuned)
        self.eval()

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks."""
        return list(self._known)

    def add(self, name: str, tuned: TunedModel) -> None:
        """Takes one more task.

        Raises:
            PlanError: it has no bypass, or was tuned on another backbone.
            InputError: the name is taken or can't be one, or it is no tuned model.
        """
        check_name(name, self.branches)
        halves = halves_of(name, tuned)
        trunk = own_part(halves.trunk.graph, halves.trunk, "Trunk")
        branch = own_part(halves.branch.graph, halves.branch, "Branch")
        reads = list(range(len(halves.names)))
        if self._known:
            moved_like(self.trunk, trunk, branch)
            check_weights(name, trunk, tensors_of(self.trunk))
            graph, reads = merge(self.trunk, trunk)
            trunk = over(used_by(graph, [self.trunk, trunk]), graph, "Trunk")
        for other in self._known:
            share_frozen(branch, self._branch(other))
        self.trunk = trunk.eval()
        self.branches[name] = branch.train(self.training)
        self._known[name] = _Branch(reads, [_has_rows(sizes) for sizes in halves.sizes], halves.signature)
        self._batched = {}

    def drop(self, name: str) -> None:
        """Takes a task out, with what only it needed.

        Raises:
            InputError: there is no such task, or it is the only one.
        """
        self._check_known(name)
        if len(self._known) == 1:
            raise InputError(
                "a MultiTask needs a task", found=f"`{name}` is the only one", fix="add another one before"
            )
        del self.branches[name], self._known[name]
        left = sorted({i for task in self._known.values() for i in task.reads})
        graph = without(self.trunk, left)
        self.trunk = over(used_by(graph, [self.trunk]), graph, "Trunk").eval()
        for task in self._known.values():
            task.reads = [left.index(i) for i in task.reads]
        self._batched = {}

    def forward(self, *args: Any, task: Sequence[str | int] | Tensor | None = None, **kwargs: Any) -> Any:
        """What the tasks' models give for these inputs.

        Args:
            args, kwargs: the model's own inputs.
            task: one task a sample, by name or by its place in `tasks`.

        Returns:
            By default a dict, task to what its model returns. With `task`, a list with one result a sample: what the
            model of its task returns, without the batch axis.

        Raises:
            InputError: the graph does not take these inputs, or there is no such task.
        """
        signature = next(iter(self._known.values())).signature
        with torch.no_grad():
            values = list(self.trunk(*signature.bind(args, kwargs)))
        if task is None:
            return self._every(values)
        return self._chosen(values, self._names(task, _samples(values, self._known.values())))

    def train(self, mode: bool = True) -> MultiTask:
        """Sets the mode of the branches; the trunk is never in training mode."""
        super().train(mode)
        if "trunk" in self._modules:
            self.trunk.eval()
        return self

    def _names(self, chosen: Sequence[str | int] | Tensor, samples: int) -> list[str]:
        """The name of each sample's task."""
        given = _listed(chosen)
        if given is None or len(given) != samples:
            raise InputError(
                "there must be one task for each sample",
                found=f"task={chosen!r} for {samples} samples",
                fix='name one a sample: task=["birds", "cars"]',
            )
        names = self.tasks
        for one in given:
            if type(one) is not int or not 0 <= one < len(names):
                self._check_known(one)
        return [names[one] if isinstance(one, int) else one for one in given]

    def _check_known(self, name: object) -> None:
        if not isinstance(name, str) or name not in self._known:
            near = nearest(str(name), self._known)
            raise InputError(
                f"there is no task {name!r}",
                found=f"the tasks are {', '.join(self._known)}",
                fix=f"did you mean {near[0]!r}?" if near else "name one of them, or its place among them",
            )

    def _every(self, values: Sequence[Tensor]) -> dict[str, Any]:
        found = {}
        for names, batched in self._groups().items():
            read = [values[i] for i in self._known[names[0]].reads]
            for name, results in zip(names, batched.every(read), strict=True):
                found[name] = self._result(name, results)
        return {name: found[name] for name in self._known}

    def _chosen(self, values: Sequence[Tensor], chosen: Sequence[str]) -> list[Any]:
        found: dict[int, Any] = {}
        for names, batched in self._groups().items():
            samples = [i for i, name in enumerate(chosen) if name in names]
            if not samples:
                continue
            task = self._known[names[0]]
            read = [values[i] for i in task.reads]
            rows = [_row(known, value, len(chosen)) for known, value in zip(task.rows, read, strict=True)]
            index = torch.tensor(samples, device=read[0].device)
            part = [value[index] if row else value for value, row in zip(read, rows, strict=True)]
            which = [names.index(chosen[i]) for i in samples]
            for i, results in zip(samples, batched.chosen(part, which, rows), strict=True):
                found[i] = self._result(chosen[i], results)
        return [found[i] for i in range(len(chosen))]

    def _result(self, name: str, results: tuple[Tensor, ...]) -> Any:
        return self._known[name].signature.result(results[0] if len(results) == 1 else results)

    def _groups(self) -> dict[tuple[str, ...], Batched]:
        """The tasks that run as one."""
        if not self._batched:
            kinds: dict[Any, list[str]] = {}
            for name, task in self._known.items():
                kinds.setdefault(kind_of(self._branch(name), tuple(task.reads)), []).append(name)
            self._batched = {tuple(names): Batched([self._branch(n) for n in names]) for names in kinds.values()}
        return self._batched

    def _branch(self, name: str) -> Region:
        branch = self.branches[name]
        assert isinstance(branch, Region)
        return branch


def _has_rows(sizes: tuple[int | None, ...]) -> bool | None:
    return sizes[0] is None if sizes else None


def _row(known: bool | None, value: Tensor, samples: int) -> bool:
    return known if known is not None else value.dim() > 0 and value.shape[0] == samples


def _listed(chosen: Any) -> list[Any] | None:
    """Names and places as plain values, of a list, a tensor or an array; None if it is no row of them."""
    given = chosen.tolist() if hasattr(chosen, "tolist") else chosen
    if isinstance(given, str) or not isinstance(given, Iterable):
        return None
    return [one.item() if getattr(one, "ndim", None) == 0 else one for one in given]


def _samples(values: Sequence[Tensor], tasks: Iterable[_Branch]) -> int:
    """How many samples there are: the rows of a value that is known to have one for each, or else of the first."""
    known = (i for task in tasks for i, has in zip(task.reads, task.rows, strict=True) if has)
    return len(values[next(known, 0)])
