"""What may become a task of a MultiTask."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TypeAlias

from torch import Tensor, nn

from fxtune.api import load
from fxtune.errors import InputError, PlanError
from fxtune.splitting import Split, has_bypass, split, tensors_of
from fxtune.tracing import Region
from fxtune.tuned import TunedModel, one_capture
from fxtune.wrapped import is_wrapped, same_numbers

Task: TypeAlias = TunedModel | str | PathLike[str]
"""A tuned model, or the folder where one was saved."""


def tuned_models(model: nn.Module, tasks: Mapping[str, Task]) -> dict[str, TunedModel]:
    """The tasks' models; those that are folders are loaded on the backbone, which is captured once for all of them.

    Raises:
        CheckpointError: a folder holds no checkpoint, or one of another backbone.
    """
    with one_capture():
        return {
            name: load(model, Path(task), other_weights="refuse") if isinstance(task, str | PathLike) else task
            for name, task in tasks.items()
        }


def halves_of(name: str, tuned: object) -> Split:
    """The trunk and the branch of a task.

    Raises:
        InputError: it is no tuned model.
        PlanError: it has no bypass.
    """
    if not isinstance(tuned, TunedModel):
        raise InputError(
            f"the task `{name}` is no tuned model",
            found=f"a {type(tuned).__name__}",
            fix='pass what fxtune.apply(model, rules="res_bypass") or fxtune.load(model, folder) returns',
        )
    if not has_bypass(tuned.graph_module):
        raise PlanError(
            f"the task `{name}` cannot share a backbone pass with others",
            found="no detached bypass among its tuners",
            fix='tune it beside the backbone: fxtune.apply(model, rules="res_bypass")',
        )
    return split(tuned.graph_module)


def check_name(name: object, taken: nn.Module) -> None:
    """Refuses a name that a task can't have.

    Raises:
        InputError: why.
    """
    if isinstance(name, str) and name in taken._modules:
        raise InputError(f"there is a task {name!r} already", fix="drop it first, or name this one otherwise")
    if not isinstance(name, str) or not name or "." in name or hasattr(taken, name):
        raise InputError(
            f"{name!r} cannot be the name of a task",
            found="it is to be a part of names in the state_dict, and no attribute of modules",
            fix="take a word without dots",
        )


def check_weights(name: str, trunk: Region, weights: Mapping[str, Tensor]) -> None:
    """Refuses a task whose trunk has other weights than the backbone.

    Args:
        name: the task's name.
        trunk: its trunk.
        weights: the backbone's, by name.

    Raises:
        PlanError: they differ.
    """
    for path, tensor in tensors_of(trunk).items():
        there = weights.get(path)
        if there is not None and not _equal(tensor, there):
            shape = "" if tensor.shape == there.shape else f": {tuple(tensor.shape)}, and {tuple(there.shape)} there"
            raise PlanError(
                f"the task `{name}` was tuned on another backbone",
                found=f"its `{path}` differs from the backbone's{shape}",
                fix="tasks that share a backbone pass must be tuned on one and the same pretrained model",
            )


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    same = not is_wrapped(one) and one.data_ptr() == other.data_ptr() and one.stride() == other.stride()
    return (same and one.device == other.device) or same_numbers(one, other)
