"""Safetensors files from strangers: they hold numbers and nothing else, and all damage is told alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fxtune.errors import CheckpointError
from fxtune.files import replacing


class Stored(Protocol):
    """Weights under the names that they have in a model's state_dict."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of each weight."""

    def tensors(self) -> dict[str, Tensor]:
        """The weights, on the CPU.

        Raises:
            CheckpointError: they cannot be read.
        """

    def contradiction(self, found: str) -> CheckpointError:
        """What to raise where they are not those of the model."""


def read_header(path: Path) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """The texts in a file's header, and the shape of each tensor.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise unreadable(path, str(error)) from None


def read_tensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The texts in a file's header, and its tensors, on the CPU.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise unreadable(path, str(error)) from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Writes a file of tensors, which takes its place in one step.

    Raises:
        OSError: it can't be written.
    """
    lying_apart = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as partial:
        save_file(lying_apart, partial, metadata=dict(header))


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError where a tensor of a file has numbers that are not finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise CheckpointError(
                "this checkpoint holds numbers that are not finite",
                found=f"NaN or infinity in `{name}`",
                where=str(path),
                fix="load an earlier checkpoint: this training has diverged, or the file is damaged",
            )


def unreadable(path: Path, found: str) -> CheckpointError:
    """What to raise where a file is damaged."""
    return CheckpointError(
        "this checkpoint cannot be read",
        found=found,
        where=str(path),
        fix="copy it again from where it came, or take an earlier one",
    )
