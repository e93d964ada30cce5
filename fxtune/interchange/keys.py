"""Names of tensors in LoRA files: the module that each pair of factors belongs to."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from fxtune.errors import CheckpointError
from fxtune.interchange.config import not_carried
from fxtune.source import nearest

DOWN, UP = ".lora_A.weight", ".lora_B.weight"
"""What follows the module path, as PEFT writes it."""

DIFFUSERS_ENDS = {DOWN: DOWN, UP: UP, ".lora.down.weight": DOWN, ".lora.up.weight": UP}
"""As diffusers reads it: PEFT's names, or its own."""

_OTHER_KINDS = {
    "lora_magnitude_vector": "DoRA, which also rescales each row of the weight",
    "dora_scale": "DoRA, which also rescales each row of the weight",
    "lora_embedding_": "LoRA on an embedding",
    "lora_B.bias": "a bias inside of LoRA",
    "lora_diag": "KaSA, which changes the model's own weights",
    "lokr_": "LoKr, a Kronecker product",
    "hada_": "LoHa, a Hadamard product",
    "lora_down.weight": "LoRA under the names of kohya's scripts",
    "lora_up.weight": "LoRA under the names of kohya's scripts",
    ".processor.": "LoRA under the names that diffusers gave its processors in 2023",
}
"""What other names say, as far as they are known."""

_MOST_NAME = 300
"""Characters of a name of which the nearest are looked for."""


def ending(key: str, ends: Collection[str]) -> tuple[str, str] | None:
    """The module path in a key and what follows it; None where the key is none of LoRA's."""
    end = next((end for end in ends if key.endswith(end)), None)
    return None if end is None else (key.removesuffix(end), end)


def check_plain(key: str, path: Path) -> None:
    """Raises CheckpointError where a key is known to be of another method."""
    kind = next((kind for mark, kind in _OTHER_KINDS.items() if mark in key), None)
    if kind is not None:
        raise not_carried(path, f"`{shortened(key)}`: {kind}")


def unknown(key: str, what: str, name: str, known: Iterable[str], path: Path) -> CheckpointError:
    """What to raise where a key names something that the model does not have.

    Args:
        key: the key.
        what: the kind of thing: `module`, `weight`.
        name: the thing.
        known: what there is of that kind.
        path: of the file.
    """
    near = nearest(name[:_MOST_NAME], set(known))
    return CheckpointError(
        f"this checkpoint is of a model with another {what}",
        found=f"`{shortened(key)}`: there is no {what} `{shortened(name)}`; nearest: {', '.join(near) or 'none'}",
        where=str(path),
        fix="load it on the architecture that it was trained on",
    )


def shortened(name: str) -> str:
    """A name that fits a line."""
    return name if len(name) <= _MOST_NAME else f"{name[:_MOST_NAME]}..."
