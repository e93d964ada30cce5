"""The learning rate over the steps."""

from __future__ import annotations

import math

from fxtune.recipes import Schedule


def factor(schedule: Schedule, step: int, steps: int, steps_an_epoch: int) -> float:
    """By what the highest learning rate is multiplied at a step.

    It rises from ``1 / warmup`` to 1 over the warm-up, and falls from 1 behind it: a step after the last would have 0.

    Args:
        schedule: its shape and warm-up.
        step: counted from 0.
        steps: of the whole training.
        steps_an_epoch: in which the warm-up is counted.
    """
    warmup = min(round(schedule.warmup * steps_an_epoch), steps)
    if step < warmup:
        return (step + 1) / warmup
    if schedule.shape == "constant":
        return 1.0
    done = (step - warmup) / max(1, steps - warmup)
    return (1 + math.cos(math.pi * done)) / 2 if schedule.shape == "cosine" else 1 - done
