"""A backbone as a method tunes it: by fxtune's rules, or by PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
from torch import nn

import fxtune
from evidence.subjects import Subject

RANK = 8

PEFTS: dict[str, Callable[[Subject], peft.PeftConfig]] = {
    "PEFT LoRA": lambda s: peft.LoraConfig(r=RANK, lora_alpha=RANK, **_places(s)),
    "PEFT DoRA": lambda s: peft.LoraConfig(r=RANK, lora_alpha=RANK, use_dora=True, **_places(s)),
    "PEFT LoHa": lambda s: peft.LoHaConfig(r=RANK, alpha=RANK, **_places(s)),
    "PEFT IA3": lambda s: peft.IA3Config(feedforward_modules=[], **_places(s)),
}
"""PEFT's methods that take any model, all at the same linear maps."""


def tuned(subject: Subject, method: str, seed: int, **how: Any) -> nn.Module:
    """The model of a row.

    Args:
        subject: its backbone.
        method: the name of a shipped rule set, or of one of `PEFTS`.
        seed: of the new weights, the head's too.
        how: further arguments of `fxtune.apply`.
    """
    model = subject.model(seed)
    if method in PEFTS:
        return peft.get_peft_model(model, PEFTS[method](subject))
    inputs, _ = next(iter(subject.splits["val"].batches(4)))
    return fxtune.apply(model, method, example_inputs=inputs, head=subject.head, seed=seed, **how)


def _places(subject: Subject) -> dict[str, list[str]]:
    return {"target_modules": subject.lora, "modules_to_save": [subject.head]}
