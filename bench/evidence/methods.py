"""A backbone as a method tunes it: by fxtune's rules, or by PEFT."""

from __future__ import annotations

from typing import Any

import peft
from subjects import Subject
from torch import nn

import fxtune

PEFT_LORA = "PEFT LoRA"
RANK = 8


def tuned(subject: Subject, method: str, seed: int, **how: Any) -> nn.Module:
    """The model of a row.

    Args:
        subject: its backbone.
        method: the name of a shipped rule set, or `PEFT_LORA`.
        seed: of the new weights, the head's too.
        how: further arguments of `fxtune.apply`.
    """
    model = subject.model(seed)
    if method == PEFT_LORA:
        config = peft.LoraConfig(
            r=RANK,
            lora_alpha=RANK,
            lora_dropout=0.0,
            target_modules=subject.lora,
            modules_to_save=[subject.head],
        )
        return peft.get_peft_model(model, config)
    inputs, _ = next(iter(subject.splits["val"].batches(4)))
    return fxtune.apply(model, method, example_inputs=inputs, head=subject.head, seed=seed, **how)
