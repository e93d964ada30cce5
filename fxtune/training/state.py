"""What a killed training goes on from: one file, which gives way to the next in one step.

It holds numbers alone (weights that train or move, and the optimizer's moments), and in its header where the training
is. There is no random state: what is drawn follows from the seed and the step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from fxtune.errors import CheckpointError
from fxtune.saving import read_tensors, write_tensors
from fxtune.training.layout import Layout, laid_out, whole
from fxtune.tuned import TunedModel, own_tensors

FILE = "state.safetensors"
WEIGHTS = "weights at the start"
"""What tells two trainings apart that are else alike."""
_MODEL, _OPTIMIZER = "model/", "optimizer/"


class Standing(BaseModel):
    """Where a training is.

    Attributes:
        training: what is trained and how, as plain data: a training with another one is not this one.
        step: steps done.
        best: the best accuracy on `val` so far, in the epoch `best_epoch`.
        unreadable: samples that could not be decoded so far, and why.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    training: dict[str, Any]
    step: int = 0
    best: float | None = None
    best_epoch: int | None = None
    unreadable: tuple[str, ...] = ()


def state_tensors(layout: Layout, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and moments, whole. All processes call it, once the layout has gathered the weights."""
    tuned = layout.tuned
    tensors = {f"{_MODEL}{name}": tensor for name, tensor in own_tensors(tuned, tuned.strip()).items()}
    for name, parameter in layout.weights().items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                tensors[f"{_OPTIMIZER}{name}/{key}"] = whole(torch.as_tensor(value))
    return tensors


def write_state(folder: Path, standing: Standing, tensors: Mapping[str, Tensor]) -> None:
    """Writes the state, of `state_tensors`.

    Raises:
        CheckpointError: it can't be written.
    """
    _write(folder / FILE, tensors, {"standing": standing.model_dump_json()})


def write_weights(path: Path, tuned: TunedModel) -> None:
    """Writes what is the tuned model's own, for `put_weights`.

    Raises:
        CheckpointError: it can't be written.
    """
    _write(path, own_tensors(tuned, tuned.strip()), {})


def read_state(folder: Path, training: Mapping[str, Any]) -> tuple[Standing, dict[str, Tensor]] | None:
    """Where the training in a folder is, and its tensors; None where none was begun.

    Raises:
        CheckpointError: the folder holds another training, or a damaged file.
    """
    path = folder / FILE
    if not path.exists():
        return None
    header, tensors = read_tensors(path)
    try:
        standing = Standing.model_validate_json(header.get("standing", ""))
    except ValidationError:
        raise CheckpointError(
            "this file is no state of a training", where=str(path), fix="train in another folder"
        ) from None
    now = json.loads(json.dumps(training))
    if standing.training != now:
        odd = _differing(standing.training, now)
        seeded = " (a function that draws a model's weights must seed itself)" if WEIGHTS in odd else ""
        raise CheckpointError(
            "this folder holds another training",
            found=f"it differs in {', '.join(odd)}",
            where=str(path),
            fix=f"give the arguments that it was begun with{seeded}, or name another folder",
        )
    return standing, tensors


def _differing(one: Any, other: Any, name: str = "") -> list[str]:
    """Dotted names of what differs."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return [] if one == other else [name]
    keys = list({**one, **other})
    return [odd for key in keys for odd in _differing(one.get(key), other.get(key), f"{name}.{key}" if name else key)]


def put_state(tensors: Mapping[str, Tensor], layout: Layout, optimizer: torch.optim.Optimizer) -> None:
    """Puts weights and moments back, bit for bit. All processes call it."""
    put_weights(
        layout.tuned, {name.removeprefix(_MODEL): value for name, value in tensors.items() if name.startswith(_MODEL)}
    )
    layout.spread()
    parameters = layout.weights()
    for key, value in tensors.items():
        if key.startswith(_OPTIMIZER):
            name, _, moment = key.removeprefix(_OPTIMIZER).rpartition("/")
            # Steps are counted on the CPU, whatever the device of the weights.
            like = value if value.ndim == 0 else parameters[name]
            optimizer.state[parameters[name]][moment] = laid_out(value, like)


def put_weights(tuned: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Puts what `write_weights` wrote back in its place."""
    tuned.load_state_dict(dict(weights), strict=False)


def _write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    try:
        write_tensors(path, tensors, header)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            "the state of a training can't be written",
            found=str(error),
            where=str(path),
            fix="make room on the disk and give the same command again: it goes on from its last state",
        ) from None
