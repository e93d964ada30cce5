"""Many tasks on one backbone pass, against as many fully tuned models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch
from torch import nn

import fxtune
from fxtune.tuned import one_capture
from halved import half_wide_unet, latents
from timing import paired

IMAGES = 8
MOST = {"token": 0.06, "avg": 0.09, "unet": 0.164}
"""The share of the time that is left at most: 94 %, 91 % and the paper's 83.6 % less."""


def measure(rounds: int) -> Iterator[dict[str, Any]]:
    """One row a comparison: seconds of separate models, of the tasks together, and the ratio with its bound."""
    torch.manual_seed(0)
    for pool, head in (("token", "class token"), ("avg", "mean-pooled")):
        model = timm.create_model("vit_base_patch16_224", global_pool=pool).eval()
        inputs = {"x": torch.randn(IMAGES, 3, 224, 224)}
        yield _row(f"19 tasks, ViT-B/16, {head}", model, inputs, 19, rounds, MOST[pool], num_classes=100)
    yield _row("10 tasks, U-Net", half_wide_unet().eval(), latents(), 10, rounds, MOST["unet"])


def _row(
    what: str,
    model: nn.Module,
    inputs: dict[str, torch.Tensor],
    count: int,
    rounds: int,
    at_most: float,
    **options: Any,
) -> dict[str, Any]:
    with one_capture():
        tasks = {
            f"task_{i}": fxtune.apply(model, "res_bypass", seed=i, example_inputs=((), inputs), **options)
            for i in range(count)
        }
    many = fxtune.multitask(model, tasks)
    separate_s, together_s, ratio = paired(_separate(model, inputs, count), _together(many, inputs), rounds)
    return {"what": what, "separate_s": separate_s, "together_s": together_s, "ratio": ratio, "ratio_at_most": at_most}


def _separate(model: nn.Module, inputs: dict[str, torch.Tensor], count: int) -> Callable[[], None]:
    """A fully tuned model takes as long as the original."""

    @torch.no_grad()
    def run() -> None:
        for _ in range(count):
            model(**inputs)

    return run


def _together(many: nn.Module, inputs: dict[str, torch.Tensor]) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        many(**inputs)

    return run
