"""What `apply` costs beside the exports that it cannot do without, on each of the five families, on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import transformers
from diffusers import UNet2DConditionModel
from torch import nn
from torch.utils import _pytree as pytree

import fxtune
from fxtune import cards, names
from timing import paired

FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "ViT-B/16": lambda: names.resolve("timm/vit_base_patch16_224", meta=True),
    "ConvNeXt-B": lambda: names.resolve("timm/convnext_base", meta=True),
    "ResNet-101": lambda: names.resolve("timm/resnet101", meta=True),
    "BERT-base": lambda: transformers.BertModel(transformers.BertConfig()),
    "U-Net of Stable Diffusion 1.5": lambda: UNet2DConditionModel(
        sample_size=64, cross_attention_dim=768, attention_head_dim=8
    ),
}

MOST_OF_NEEDED, MOST_OF_ONE = 1.3, 2.6


def measure(rounds: int) -> Iterator[dict[str, Any]]:
    """One row a family: seconds of one export and of `apply`, its exports, the ratios and their bounds."""
    for family, build in FAMILIES.items():
        with torch.device("meta"):
            model = build().train()
        with counted_exports() as exports:
            fxtune.apply(model, rules="tri_res")
        needed = len(exports)
        export_s, apply_s, of_one = paired(
            lambda model=model: export(model), lambda model=model: fxtune.apply(model, rules="tri_res"), rounds
        )
        yield {
            "what": family,
            "export_s": export_s,
            "apply_s": apply_s,
            "exports_needed": needed,
            "of_needed": of_one / needed,
            "of_needed_at_most": MOST_OF_NEEDED,
            "of_one": of_one,
            "of_one_at_most": MOST_OF_ONE,
        }


def export(model: nn.Module) -> torch.export.ExportedProgram:
    """A plain export of the model with its sizes dynamic, as `apply` needs it."""
    args, kwargs = cards.example_inputs(model)
    dynamic = torch.export.ShapesCollection()
    for tensor in pytree.tree_leaves((args, kwargs)):
        dynamic[tensor] = dict.fromkeys(range(tensor.ndim), torch.export.Dim.AUTO)
    return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic, strict=False)


@contextmanager
def counted_exports() -> Iterator[list[None]]:
    """A list that grows by one with every export."""
    calls: list[None] = []
    original = torch.export.export

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        return original(*args, **kwargs)

    with mock.patch("torch.export.export", counting):
        yield calls
