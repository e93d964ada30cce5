"""The forms in which a tuned model lies on disk, known by their files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from fxtune.errors import CheckpointError
from fxtune.saving import FILE
from fxtune.source import nearest

Format = Literal["fxtune", "peft", "diffusers"]
FORMATS: tuple[Format, ...] = get_args(Format)

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"

_PICKLED = {
    "adapter_model.bin": PEFT_WEIGHTS,
    "pytorch_lora_weights.bin": DIFFUSERS_WEIGHTS,
}
"""What other libraries wrote before safetensors, and what they write now."""

_KNOWN_BY: dict[Format, str] = {"fxtune": FILE, "peft": PEFT_CONFIG, "diffusers": DIFFUSERS_WEIGHTS}


def recognised(folder: Path, wanted: str | None = None) -> Format:
    """What a folder holds; fxtune's own where it holds nothing that is known.

    Args:
        folder: the folder.
        wanted: what it is said to hold, by a caller.

    Raises:
        CheckpointError: there is no such form; or the folder holds several, and nobody says which is meant.
    """
    if wanted is not None:
        return check_format(wanted)
    found = [name for name, file in _KNOWN_BY.items() if (folder / file).exists()]
    if len(found) > 1:
        raise CheckpointError(
            "this folder holds more than one form of a tuned model",
            found=", ".join(f"{name} ({_KNOWN_BY[name]})" for name in found),
            where=str(folder),
            fix=f"say which is meant: format={found[0]!r}",
        )
    pickled = [file for file in _PICKLED if (folder / file).exists()]
    if not found and pickled:
        raise _is_pickled(folder / pickled[0])
    return found[0] if found else "fxtune"


def check_format(wanted: str) -> Format:
    """The form of that name.

    Raises:
        CheckpointError: there is none; the nearest name.
    """
    for name in FORMATS:
        if name == wanted:
            return name
    near = nearest(str(wanted), FORMATS, 1)
    raise CheckpointError(
        f"there is no format {wanted!r}",
        found=f"the formats are {', '.join(FORMATS)}",
        fix=f"did you mean {near[0]!r}?" if near else None,
    )


def file_in(folder: Path, name: str) -> Path:
    """The file of that name in a folder.

    Raises:
        CheckpointError: it is not there, or only a pickled form of it.
    """
    path = folder / name
    if path.is_file():
        return path
    old = next((old for old, new in _PICKLED.items() if new == name and (folder / old).exists()), None)
    if old is not None:
        raise _is_pickled(folder / old)
    inside = sorted(file.name for file in folder.iterdir())[:5] if folder.is_dir() else None
    raise CheckpointError(
        f"this folder has no file {name}",
        found="no such folder" if inside is None else f"it has {', '.join(inside) or 'nothing'}",
        where=str(folder),
        fix="name the folder that the library wrote",
    )


def _is_pickled(path: Path) -> CheckpointError:
    return CheckpointError(
        "this checkpoint is a pickle, which could run anything when it is read",
        found=path.name,
        where=str(path),
        fix="let the library that wrote it load it where it is trusted, and save it again: safetensors is its default",
    )
