"""PEFT's `LoraConfig` as data: what of it is carried over, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fxtune import source
from fxtune.errors import CheckpointError, SourceError
from fxtune.interchange.patterns import lookup
from fxtune.saving import unreadable

_MOST_TEXT = 2**24
"""Bytes of a config: more is none."""

_NOT_CARRIED = {
    "use_dora": "DoRA, which also rescales each row of the weight",
    "use_qalora": "QALoRA, for quantised weights",
    "lora_bias": "a bias inside of LoRA",
    "layer_replication": "layers that are there twice",
    "target_parameters": "LoRA on parameters instead of modules",
    "trainable_token_indices": "single rows of an embedding that train",
    "megatron_config": "layers of Megatron",
    "alora_invocation_tokens": "activated LoRA, which starts in the middle of a text",
    "arrow_config": "Arrow, a routing between adapters",
    "kasa_config": "KaSA, which changes the model's own weights",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA, which samples its weights",
    "use_bdlora": "block-diagonal LoRA",
    "corda_config": "CorDA, which changes the model's own weights",
    "lora_ga_config": "LoRA-GA, which changes the model's own weights",
    "ensure_weight_tying": "tied adapters",
}
"""Settings that make something else of LoRA, and what."""

_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Initialisations that leave the model's own weights as they are."""

Ends = list[str] | str | None
_About = Annotated[Any, Field(default=None, description="no matter for what is computed")]


class PeftConfig(BaseModel):
    """What is read of PEFT's `LoraConfig`; defaults are PEFT's."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    peft_type: str = "LORA"
    r: Annotated[int, Field(ge=1)] = 8
    lora_alpha: Annotated[float, Field(gt=0)] = 8
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] | None = None
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] | None = None
    use_rslora: bool = False
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    bias: Literal["none", "all", "lora_only"] = "none"
    target_modules: Ends = None
    modules_to_save: list[Annotated[str, Field(min_length=1)]] | None = None
    init_lora_weights: bool | str | None = True
    fan_in_fan_out: bool = Field(default=False, description="how a weight is stored, which its graph tells")

    auto_mapping: _About
    base_model_name_or_path: _About
    eva_config: _About
    exclude_modules: _About
    inference_mode: _About
    layers_pattern: _About
    layers_to_transform: _About
    loftq_config: _About
    megatron_core: _About
    peft_version: _About
    qalora_group_size: _About
    revision: _About
    runtime_config: _About
    task_type: _About

    def rank_of(self) -> Callable[[str], int]:
        """r of a module path.

        Raises:
            ValueError: a pattern is not read.
        """
        return lookup(self.rank_pattern or {}, self.r)

    def alpha_of(self) -> Callable[[str], float]:
        """Numerator of the factor of a module path, before `use_rslora`.

        Raises:
            ValueError: a pattern is not read.
        """
        return lookup(self.alpha_pattern or {}, self.lora_alpha)

    def targets(self, path: str) -> bool:
        """Whether the config speaks of this module; a regular expression is not evaluated, for the tensors tell."""
        if not isinstance(self.target_modules, list):
            return True
        return any(path == end or path.endswith(f".{end}") for end in self.target_modules)


def read_config(path: Path) -> PeftConfig:
    """The config in a file of its own.

    Raises:
        CheckpointError: as `parse_config`.
    """
    try:
        if path.stat().st_size > _MOST_TEXT:
            raise unreadable(path, f"over {_MOST_TEXT:,d} bytes of text")
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, str(error)) from None
    return parse_config(text, path)


def parse_config(text: str, path: Path, prefix: str = "") -> PeftConfig:
    """The config that a JSON text gives.

    Args:
        text: the JSON.
        path: of the file that it stands in.
        prefix: what each of its keys begins with; others are of another model of a pipeline.

    Raises:
        CheckpointError: it is damaged; it has a key that PEFT does not know (the nearest one); or it asks for something
            that is not carried over.
    """
    try:
        data = json.loads(text, object_pairs_hook=_once_each, parse_constant=_no_number)
        if not isinstance(data, dict):
            raise unreadable(path, "its config is no mapping")
        data = {key.removeprefix(prefix): value for key, value in data.items() if key.startswith(prefix)}
        _check_kind(data, path)
        document = source.from_data({key: value for key, value in data.items() if not _is_off(key, value)}, path.name)
        return document.validate(PeftConfig)
    except RecursionError:
        raise unreadable(path, "its config is nested too deeply") from None
    except ValueError as error:
        raise unreadable(path, f"its config is no JSON: {error}") from None
    except SourceError as error:
        raise CheckpointError(
            "this config is none that PEFT writes for LoRA",
            found=error.found,
            where=str(path),
            fix="correct it, or copy it again from where it came",
        ) from None


def _check_kind(data: Mapping[str, Any], path: Path) -> None:
    """Refuses what is not plain LoRA."""
    kind = data.get("peft_type", "LORA")
    if kind != "LORA":
        raise not_carried(path, f"peft_type: {kind!r}, another method than LoRA")
    for name, what in _NOT_CARRIED.items():
        if data.get(name):
            raise not_carried(path, f"{name}: {what}")
    start = data.get("init_lora_weights", True)
    if start is not None and start not in _PLAIN_STARTS:
        raise not_carried(path, f"init_lora_weights: {start!r}, which changes the model's own weights")


def not_carried(path: Path, found: str) -> CheckpointError:
    """What to raise where a file asks for more than LoRA."""
    return CheckpointError(
        "this adapter is more than LoRA, and fxtune does not carry it over",
        found=found,
        where=str(path),
        fix="let the library that trained it merge it into the model's weights, and load that model",
    )


def _is_off(key: str, value: object) -> bool:
    """Whether a key says that something is not used: newer versions of PEFT write so of what older ones lack."""
    return key not in PeftConfig.model_fields and (value is None or value is False or value in ({}, [], ""))


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            raise ValueError(f"{key[:80]!r} stands there twice")
        data[key] = value
    return data


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")
