"""Models and rules that are verified."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import families
import fxtune

Rules = str | dict[str, Any]


def rule(at: str, insert: Any, **more: Any) -> dict[str, Any]:
    return {"name": "tested", "rules": [{"at": at, "insert": insert, **more}]}


RULES: dict[str, Rules] = {
    "prefix": rule("mha", {"res_prefix": {"tokens": 3, "scale": "channel"}}),
    "prompt": rule("mha", {"res_prompt": {"tokens": 3}}),
    "vpt": rule("block", {"vpt": {"tokens": 3}}),
    "adapter": "adapter",
    "lora": "lora",
    "bitfit": "bitfit",
}


def vit(depth: int = 1) -> nn.Module:
    return VisionTransformer(
        img_size=16, patch_size=8, embed_dim=16, depth=depth, num_heads=2, num_classes=3, init_values=1e-5, qk_norm=True
    )


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    return transformers.BertModel(config, add_pooling_layer=False)


def unet() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=12,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vit": vit,
    "deep vit": lambda: vit(2),
    "bert": bert,
    "unet": unet,
    "convnext": lambda: ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 6, 8, 10), num_classes=3, ls_init_value=1e-6),
    "resnet": families.FAMILIES["resnet"].build,
}
INPUTS = {"convnext": families.images(2, 64), "resnet": families.images(2)}


@functools.cache
def model(family: str) -> nn.Module:
    """In training mode, as libraries build models; with their zero biases."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[family]()


def verified(family: str, rules: Rules, examples: Any = 3, **more: Any) -> fxtune.Certificate:
    return fxtune.verify(model(family), rules, examples=examples, example_inputs=INPUTS.get(family), **more)
