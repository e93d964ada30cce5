"""LoRA files written: PEFT's folders, and diffusers' files for one model of a pipeline."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from fxtune.errors import CheckpointError
from fxtune.files import replacing
from fxtune.interchange.adapter import Adapter
from fxtune.interchange.formats import DIFFUSERS_WEIGHTS, PEFT_CONFIG, PEFT_WEIGHTS
from fxtune.interchange.kept import Kept
from fxtune.interchange.keys import DOWN, UP
from fxtune.interchange.patterns import pattern_of
from fxtune.interchange.reading import DIFFUSERS_CONFIG, INNER, PEFT_PREFIX
from fxtune.saving import write_tensors

_HEADER = {"format": "pt"}


def write_peft(folder: Path, adapter: Adapter, kept: Kept, modules: Collection[str], turned: bool) -> None:
    """Writes the two files of a PEFT folder.

    The config goes first and comes last: a save that is cut short leaves none, which no reader takes for a whole one.

    Args:
        folder: it is made if there is none.
        adapter: what is written.
        kept: PEFT's words for the adapter's other weights.
        modules: all module paths of the model.
        turned: whether a weight with LoRA is stored as D_in x D.

    Raises:
        CheckpointError: the folder can't be written to.
    """
    config = {
        **config_of(adapter, modules),
        "bias": kept.bias,
        "fan_in_fan_out": turned,
        "inference_mode": True,
        "modules_to_save": list(kept.modules) or None,
    }
    tensors = _factors(adapter, PEFT_PREFIX)
    for name, tensor in adapter.others.items():
        module, _, last = name.rpartition(".")
        inner = INNER if module in adapter.maps else "."
        tensors[f"{PEFT_PREFIX}{module}{inner}{last}"] = tensor
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / PEFT_CONFIG).unlink(missing_ok=True)
        write_tensors(folder / PEFT_WEIGHTS, tensors, _HEADER)
        with replacing(folder / PEFT_CONFIG) as partial:
            partial.write_text(json.dumps(config, indent=2, sort_keys=True), "utf-8")
    except OSError as error:
        raise _unwritable(folder, error) from None


def write_diffusers(folder: Path, adapter: Adapter, component: str, modules: Collection[str]) -> None:
    """Writes diffusers' LoRA file for one model of a pipeline.

    Args:
        folder: it is made if there is none.
        adapter: what is written; it has no other weights.
        component: what the pipeline calls the model.
        modules: all module paths of the model.

    Raises:
        CheckpointError: the folder can't be written to.
    """
    config = {f"{component}.{key}": value for key, value in config_of(adapter, modules).items()}
    header = {**_HEADER, DIFFUSERS_CONFIG: json.dumps(config, indent=2, sort_keys=True)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / DIFFUSERS_WEIGHTS, _factors(adapter, f"{component}."), header)
    except OSError as error:
        raise _unwritable(folder, error) from None


def config_of(adapter: Adapter, modules: Collection[str]) -> dict[str, Any]:
    """The adapter's ranks, factors and places as PEFT's `LoraConfig` has them."""
    rank = Counter(low.rank for low in adapter.maps.values()).most_common(1)[0][0]
    alpha = Counter(low.alpha for low in adapter.maps.values()).most_common(1)[0][0]
    maps = adapter.maps.items()
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _plain(alpha),
        "rank_pattern": {pattern_of(path): low.rank for path, low in maps if low.rank != rank},
        "alpha_pattern": {pattern_of(path): _plain(low.alpha) for path, low in maps if low.alpha != alpha},
        "lora_dropout": adapter.dropout,
        "target_modules": targets(adapter.maps, modules),
    }


def targets(maps: Collection[str], modules: Collection[str]) -> list[str] | str:
    """Module paths as PEFT takes them: a list, which names by ends of paths; or one expression, where that is not
    enough to tell them from other modules."""
    meant = set(maps)
    ends = tuple(f".{path}" for path in maps)
    if any(path.endswith(ends) and path not in meant for path in modules):
        return "|".join(pattern_of(path) for path in maps)
    return list(maps)


def _factors(adapter: Adapter, prefix: str) -> dict[str, Tensor]:
    tensors = {}
    for path, low in adapter.maps.items():
        tensors[f"{prefix}{path}{DOWN}"], tensors[f"{prefix}{path}{UP}"] = low.down, low.up
    return tensors


def _plain(number: float) -> int | float:
    """A whole number without a point, as PEFT has it."""
    return int(number) if float(number).is_integer() else number


def _unwritable(folder: Path, error: OSError) -> CheckpointError:
    return CheckpointError("this folder can't be written to", found=str(error), where=str(folder))
