"""LoRA files read: PEFT's folders, and diffusers' files for one model of a pipeline. They are a stranger's data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fxtune.errors import CheckpointError
from fxtune.interchange.adapter import Adapter, LowRank
from fxtune.interchange.config import PeftConfig, parse_config, read_config
from fxtune.interchange.formats import DIFFUSERS_WEIGHTS, PEFT_CONFIG, PEFT_WEIGHTS, file_in
from fxtune.interchange.keys import DIFFUSERS_ENDS, DOWN, UP, check_plain, ending, shortened, unknown
from fxtune.saving import check_finite, read_tensors, unreadable

PEFT_PREFIX = "base_model.model."
DIFFUSERS_CONFIG = "lora_adapter_metadata"
"""The text in the header of diffusers' file that holds PEFT's config."""
INNER, REPLACED, REPLACING = ".base_layer.", ".original_module.", ".modules_to_save."
"""What PEFT puts into names: before what a layer with LoRA has of its own; before what a module had that is now kept
whole, and before what it has instead."""


def read_peft(folder: Path, model: nn.Module) -> Adapter:
    """The LoRA in a folder that PEFT wrote.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        model: that it is for.

    Raises:
        CheckpointError: there is none; it is damaged; it holds more than LoRA; or it is of another model.
    """
    config = read_config(file_in(folder, PEFT_CONFIG))
    path = file_in(folder, PEFT_WEIGHTS)
    _, tensors = read_tensors(path)
    check_finite(path, tensors)
    outside = next((key for key in tensors if not key.startswith(PEFT_PREFIX)), None)
    if outside is not None:
        check_plain(outside, path)
        raise unreadable(path, f"`{shortened(outside)}`, where every name of PEFT's begins with `{PEFT_PREFIX}`")
    named = {key.removeprefix(PEFT_PREFIX): tensor for key, tensor in tensors.items()}
    factors, rest = _parted(named, {DOWN: DOWN, UP: UP}, model, path)
    return Adapter(
        path=path,
        maps=_scaled(factors, config, path),
        others=_others(rest, config, model, path),
        whole=tuple(config.modules_to_save or ()),
        dropout=config.lora_dropout,
    )


def read_diffusers(folder: Path, model: nn.Module, component: str | None) -> Adapter:
    """The LoRA for one model of a pipeline in a folder that diffusers wrote.

    The file may hold LoRA for other models of the pipeline, too; a warning says so.

    Args:
        folder: with ``pytorch_lora_weights.safetensors``.
        model: that it is for.
        component: what the pipeline calls this model; names may begin with it. None where that is not known.

    Raises:
        CheckpointError: there is none; it is damaged; it holds more than LoRA; or it is of another model.
    """
    path = file_in(folder, DIFFUSERS_WEIGHTS)
    header, tensors = read_tensors(path)
    check_finite(path, tensors)
    prefix = f"{component}." if component is not None else None
    prefix = prefix if prefix is not None and any(key.startswith(prefix) for key in tensors) else ""
    named = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    factors, rest = _parted(named, DIFFUSERS_ENDS, model, path)
    if rest:
        key = next(iter(rest))
        raise unknown(key, "weight", key, (name for name, _ in model.named_parameters()), path)
    text = header.get(DIFFUSERS_CONFIG)
    config = None if text is None else parse_config(text, path, prefix)
    _tell_others({key.partition(".")[0] for key in tensors if not key.startswith(prefix)}, path)
    if config is None:
        # Without a config every factor is 1: alpha is the rank.
        maps = {name: LowRank(down, up, float(down.shape[0])) for name, (down, up) in factors.items()}
        return Adapter(path, maps, {})
    return Adapter(path, _scaled(factors, config, path), {}, dropout=config.lora_dropout)


def _parted(
    tensors: Mapping[str, Tensor], ends: Mapping[str, str], model: nn.Module, path: Path
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """A and B of each module, and the tensors that are neither."""
    modules = {name for name, module in model.named_modules() if name}
    halves: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        found = ending(key, ends)
        if found is None:
            check_plain(key, path)
            rest[key] = tensor
            continue
        name, end = found
        if name not in modules:
            check_plain(key, path)
            raise unknown(key, "module", name, _with_weights(model), path)
        if ends[end] in halves.setdefault(name, {}):
            raise unreadable(path, f"two tensors for one factor, the second is `{shortened(key)}`")
        halves[name][ends[end]] = tensor
    return {name: _both(name, half, path) for name, half in halves.items()}, rest


def _both(name: str, half: Mapping[str, Tensor], path: Path) -> tuple[Tensor, Tensor]:
    missing = [end for end in (DOWN, UP) if end not in half]
    if missing:
        raise unreadable(path, f"`{name}` has one factor of LoRA and lacks the other, `{name}{missing[0]}`")
    down, up = half[DOWN], half[UP]
    if not (down.is_floating_point() and up.is_floating_point()):
        raise unreadable(path, f"the factors at `{name}` are of {down.dtype} and {up.dtype}, which are no weights")
    if down.ndim < 2 or up.ndim != down.ndim or down.shape[0] != up.shape[1] or down.shape[0] < 1:
        shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
        raise unreadable(path, f"the factors at `{name}` do not fit each other: they are of shape {shapes}")
    return down, up


def _scaled(factors: Mapping[str, tuple[Tensor, Tensor]], config: PeftConfig, path: Path) -> dict[str, LowRank]:
    """The factors with what their config says of them."""
    try:
        rank_of, alpha_of = config.rank_of(), config.alpha_of()
    except ValueError as error:
        raise CheckpointError(
            "this config has ranks or factors under a pattern that is not read",
            found=str(error),
            where=str(path.parent),
            fix="write the paths of the modules in the place of the expression",
        ) from None
    maps = {}
    for name, (down, up) in factors.items():
        rank, wanted = down.shape[0], rank_of(name)
        if rank != wanted:
            raise unreadable(path, f"LoRA at `{name}` is of rank {rank}, and its config says {wanted}")
        if not config.targets(name):
            raise unreadable(path, f"LoRA at `{name}`, which its config's target_modules do not name")
        maps[name] = LowRank(down, up, alpha_of(name) * (math.sqrt(rank) if config.use_rslora else 1.0))
    return maps


def _others(tensors: Mapping[str, Tensor], config: PeftConfig, model: nn.Module, path: Path) -> dict[str, Tensor]:
    """The model's own weights among the tensors, of which the config must speak."""
    known = model.state_dict()
    whole = config.modules_to_save or ()
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key if key in known else key.replace(INNER, ".").replace(REPLACED, ".").replace(REPLACING, ".")
        if name not in known:
            raise unknown(key, "weight", name, known, path)
        module, _, last = name.rpartition(".")
        is_bias = last == "bias" and config.bias != "none"
        if not is_bias and not _lies_in(module, whole):
            if torch.equal(known[name].cpu(), tensor.to(known[name].dtype)):
                continue  # PEFT writes what lies under LoRA on an output embedding: here it is the model's own
            raise CheckpointError(
                "this checkpoint holds a weight of which its config does not speak",
                found=f"`{shortened(key)}`; modules_to_save: {config.modules_to_save}, bias: {config.bias!r}",
                where=str(path),
                fix="name its module under modules_to_save, or take the checkpoint from where it was saved",
            )
        if key != name and REPLACED in key and _lies_in(module, whole):
            continue  # a bias that nothing computes with: its whole module is replaced
        if name in found and not torch.equal(found[name], tensor):
            raise unreadable(path, f"two tensors for `{name}`")
        found[name] = tensor
    return found


def _lies_in(module: str, ends: Iterable[str]) -> bool:
    """Whether the path of a module, or of one around it, ends so: as PEFT looks for names, dot or no dot."""
    parts = module.split(".")
    paths = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(path.endswith(end) for path in paths for end in ends)


def _with_weights(model: nn.Module) -> Iterable[str]:
    """Paths of the modules that have a weight."""
    return (name for name, module in model.named_modules() if getattr(module, "weight", None) is not None)


def _tell_others(components: set[str], path: Path) -> None:
    if components:
        error = CheckpointError(
            "this file holds LoRA for other models, too, which is not loaded here",
            found=", ".join(sorted(shortened(component) for component in components)[:5]),
            where=str(path),
        )
        warnings.warn(str(error), stacklevel=5)
