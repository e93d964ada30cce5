"""A training step on ViT-B/16: the unbound prefix against its original form, LoRA and tri_res against PEFT's LoRA,
tri_res against the same written by hand, `optimize=True`."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import peft
import timm
import torch
from torch import nn

import by_hand
import fxtune
from stepping import stepping
from timing import paired

BATCH = 4
ROUNDS_MORE = 24
"""A step is short, and what is measured is little beside what other guests of the machine do to it: so many times the
rounds of the other measurements."""
COPIES = 3
"""Equal models that take turns, so that where the weights of one of them lie in memory does not count."""

PREFIX = {
    "fxtune": 1,
    "name": "prefix",
    "train": ["tuners"],
    "rules": [{"at": "mha", "insert": {"res_prefix": {"tokens": 10}}}],
}
LORA = {
    "fxtune": 1,
    "name": "lora",
    "train": ["tuners"],
    "rules": [{"at": "mha", "on": ["q_proj"], "insert": {"lora": {"rank": 8}}}],
}


def measure(rounds: int) -> Iterator[dict[str, Any]]:
    """One row a comparison: seconds of a step of either, and the ratio with its bound."""
    torch.manual_seed(0)
    original = fxtune.apply(_vit(), PREFIX, form="original")
    yield _row("prefix: unbound over original", original, fxtune.apply(_vit(), PREFIX), rounds, 1.05)
    config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=["qkv"], lora_dropout=0.0)
    theirs = peft.get_peft_model(_vit(), config)
    yield _row("lora: fxtune over PEFT", theirs, fxtune.apply(_vit(), LORA), rounds, 1.02)
    plain = fxtune.apply(_vit(), "tri_res", num_classes=100)
    yield _row("tri_res over PEFT's LoRA of as many weights", _peft_like(plain), plain, rounds, 1.02)
    yield _row("tri_res over the same written by hand", _by_hand(plain), plain, rounds, 1.02)
    optimized = fxtune.apply(_vit(), "tri_res", num_classes=100, optimize=True)
    yield _row("tri_res: optimized over plain", plain, optimized, rounds, 0.96)


def _vit() -> nn.Module:
    return timm.create_model("vit_base_patch16_224").train()


def _peft_like(tuned: nn.Module) -> nn.Module:
    """PEFT's LoRA at the cheapest place, the fused projection, with as many weights: a rank of 16 on ViT-B/16."""
    model = timm.create_model("vit_base_patch16_224", num_classes=100)
    config = peft.LoraConfig(r=16, lora_alpha=16, target_modules=["qkv"], lora_dropout=0.0, modules_to_save=["head"])
    theirs = peft.get_peft_model(model, config).train()
    counts = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (theirs, tuned)]
    assert 0.95 < counts[0] / counts[1] < 1.05, counts
    return theirs


def _by_hand(tuned: nn.Module) -> nn.Module:
    model, images = by_hand.tri_res(tuned.state_dict(), 100), torch.randn(BATCH, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(images), tuned(images))
    return model


def _row(what: str, first: nn.Module, second: nn.Module, rounds: int, at_most: float) -> dict[str, Any]:
    first_s, second_s, ratio = paired(_copies(first), _copies(second), rounds * ROUNDS_MORE)
    return {"what": what, "first_s": first_s, "second_s": second_s, "ratio": ratio, "ratio_at_most": at_most}


def _copies(model: nn.Module) -> Callable[[], None]:
    """A step of the next of some copies of a model."""
    steps = [_step(copy.deepcopy(model)) for _ in range(COPIES)]
    for step in steps:
        step()  # makes the optimizer's state
    turns = itertools.cycle(steps)
    return lambda: next(turns)()


def _step(model: nn.Module) -> Callable[[], None]:
    """One step on random images."""
    images, labels = torch.randn(BATCH, 3, 224, 224), torch.arange(BATCH)
    return stepping(model, lambda: nn.functional.cross_entropy(model(images), labels))
