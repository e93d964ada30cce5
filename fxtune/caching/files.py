"""The files of a cache: shards in safetensors, and two JSON files. Each appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fxtune.files import replacing

PLAN = "plan.json"
"""What the cache is made of; written first."""
MANIFEST = "manifest.json"
"""Which shards there are; written last, so a cache without it is half made."""


def shard_name(view: int, number: int) -> str:
    """The file of a shard."""
    return f"features-{view:02d}-{number:05d}.safetensors"


def write_json(folder: Path, name: str, data: Mapping[str, Any]) -> None:
    """Writes a file in one step."""
    with replacing(folder / name) as partial:
        partial.write_text(json.dumps(data, indent=1), "utf-8")


def read_json(folder: Path, name: str) -> dict[str, Any] | None:
    """A file's data; None if it is not there or broken."""
    try:
        data = json.loads((folder / name).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def write_shard(path: Path, arrays: Mapping[str, Tensor], texts: Mapping[str, list[str]]) -> None:
    """Writes a shard in one step."""
    contiguous = {name: array.contiguous() for name, array in arrays.items()}
    with replacing(path) as partial:
        save_file(contiguous, partial, metadata={"texts": json.dumps(texts)})


def rows_of(path: Path, names: set[str]) -> int | None:
    """How many samples a shard holds; None if it is not there, broken, or holds other arrays."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    counts = {shape[0] for shape in found.values() if shape}
    return counts.pop() if set(found) == names and len(counts) == 1 else None


def read_texts(path: Path) -> dict[str, list[str]]:
    """The lists of texts of a shard."""
    with safe_open(path, framework="pt") as file:
        texts: dict[str, list[str]] = json.loads((file.metadata() or {}).get("texts", "{}"))
    return texts


def read_array(path: Path, name: str) -> Tensor:
    """One array of a shard."""
    with safe_open(path, framework="pt") as file:
        array: Tensor = file.get_tensor(name)
    return array
