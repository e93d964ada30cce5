"""Small members of the model families, drawn by hypothesis, with inputs of two shapes each."""

from __future__ import annotations

from typing import Any

import timm.layers
import torch
from diffusers import UNet2DConditionModel
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d
from timm.models.convnext import ConvNeXt
from timm.models.regnet import RegNet, RegNetCfg
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

Inputs = tuple[tuple[Any, ...], dict[str, Any]]

RATES = st.sampled_from([0.0, 0.1, 0.3])


class Case:
    """A model, inputs to capture it with, and others on which it is compared with eager."""

    def __init__(self, model: nn.Module, example: Inputs, others: list[Inputs]) -> None:
        self.model, self.example, self.others = model, example, others

    def __repr__(self) -> str:
        return f"a {type(self.model).__name__}"


def _images(model: nn.Module, size: int, others: list[tuple[int, int, int]]) -> Case:
    return Case(
        model,
        ((torch.randn(2, 3, size, size),), {}),
        [((torch.randn(batch, 3, height, width),), {}) for batch, height, width in others],
    )


@st.composite
def timm_vit(draw: st.DrawFn) -> Case:
    pool = draw(st.sampled_from(["token", "avg", "map", ""]))
    timm.layers.set_fused_attn(draw(st.booleans()))
    try:
        model = VisionTransformer(
            img_size=32,
            patch_size=16,
            num_classes=5,
            embed_dim=32,
            depth=draw(st.integers(1, 2)),
            num_heads=draw(st.sampled_from([2, 4])),
            qkv_bias=draw(st.booleans()),
            qk_norm=draw(st.booleans()),
            init_values=draw(st.sampled_from([None, 1e-3])),
            class_token=pool == "token" or draw(st.booleans()),
            reg_tokens=draw(st.sampled_from([0, 2])),
            no_embed_class=draw(st.booleans()),
            pre_norm=draw(st.booleans()),
            global_pool=pool,
            drop_rate=draw(RATES),
            pos_drop_rate=draw(RATES),
            patch_drop_rate=draw(st.sampled_from([0.0, 0.0, 0.5])) if pool == "token" else 0.0,
            proj_drop_rate=draw(RATES),
            attn_drop_rate=draw(RATES),
            drop_path_rate=draw(RATES),
            dynamic_img_size=draw(st.booleans()),
            **(
                {} if draw(st.booleans()) else {"block_fn": draw(st.sampled_from([ParallelScalingBlock, ResPostBlock]))}
            ),
        )
    finally:
        timm.layers.set_fused_attn(True)
    return _images(model, 32, [(3, 32, 32), (1, 32, 32)])


@st.composite
def timm_convnext(draw: st.DrawFn) -> Case:
    model = ConvNeXt(
        num_classes=5,
        depths=draw(st.sampled_from([(1, 1, 1, 1), (1, 1, 2, 1)])),
        dims=(8, 8, 16, 16),
        kernel_sizes=draw(st.sampled_from([3, 7])),
        ls_init_value=draw(st.sampled_from([None, 1e-2])),
        stem_type=draw(st.sampled_from(["patch", "overlap"])),
        head_init_scale=1.0,
        # timm allows a norm before the pooling only without a hidden layer in the head.
        **draw(st.sampled_from([{}, {"head_norm_first": True}, {"head_hidden_size": 8}])),
        conv_mlp=draw(st.booleans()),
        use_grn=draw(st.booleans()),
        drop_rate=draw(RATES),
        drop_path_rate=draw(RATES),
    )
    return _images(model, 64, [(3, 64, 64), (1, 96, 64)])


@st.composite
def timm_resnet(draw: st.DrawFn) -> Case:
    shared = {"num_classes": 5, "drop_rate": draw(RATES), "drop_path_rate": draw(RATES)}
    kind = draw(st.sampled_from(["resnet", "resnet", "v2", "regnet"]))
    if kind == "resnet":
        model: nn.Module = ResNet(
            draw(st.sampled_from([BasicBlock, Bottleneck])),
            (1, 1, 1, 1),
            stem_width=8,
            channels=(8, 8, 16, 16),
            stem_type=draw(st.sampled_from(["", "deep", "deep_tiered"])),
            avg_down=draw(st.booleans()),
            replace_stem_pool=draw(st.booleans()),
            act_layer=draw(st.sampled_from([nn.ReLU, nn.SiLU])),
            block_args=draw(st.sampled_from([None, {"attn_layer": "se"}, {"attn_layer": "eca"}])),
            **shared,
        )
    elif kind == "v2":
        model = ResNetV2(
            (1, 1, 1, 1),
            (16, 16, 16, 16),
            stem_chs=8,
            stem_type=draw(st.sampled_from(["", "deep"])),
            preact=draw(st.booleans()),
            avg_down=draw(st.booleans()),
            conv_layer=timm.layers.create_conv2d,
            norm_layer=BatchNormAct2d,
            **shared,
        )
    else:
        cfg = RegNetCfg(depth=5, w0=8, wa=10.0, wm=2.0, group_size=8, se_ratio=draw(st.sampled_from([0.0, 0.25])))
        model = RegNet(cfg, **shared)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return _images(model, 64, [(3, 64, 64), (2, 96, 64)])


@st.composite
def hf_text(draw: st.DrawFn, family: str) -> Case:
    attention = draw(st.sampled_from(["eager", "sdpa"]))
    rates = {"hidden": draw(RATES), "attention": draw(RATES)}
    heads = draw(st.sampled_from([2, 4]))
    layers = draw(st.integers(1, 2))
    classify = draw(st.booleans())
    if family == "distilbert":
        config: Any = DistilBertConfig(
            vocab_size=40,
            dim=32,
            n_layers=layers,
            n_heads=heads,
            hidden_dim=48,
            max_position_embeddings=24,
            dropout=rates["hidden"],
            attention_dropout=rates["attention"],
            activation=draw(st.sampled_from(["gelu", "relu"])),
        )
        kind: Any = DistilBertForSequenceClassification if classify else DistilBertModel
    else:
        config = (BertConfig if family == "bert" else RobertaConfig)(
            vocab_size=40,
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=48,
            max_position_embeddings=24,
            type_vocab_size=2 if family == "bert" else 1,
            hidden_dropout_prob=rates["hidden"],
            attention_probs_dropout_prob=rates["attention"],
            hidden_act=draw(st.sampled_from(["gelu", "gelu_new", "relu"])),
        )
        kinds = {"bert": (BertModel, BertForSequenceClassification)}
        kind = kinds.get(family, (RobertaModel, RobertaForSequenceClassification))[classify]
    if draw(st.booleans()):
        config.output_hidden_states = True
    if attention == "eager" and draw(st.booleans()):
        config.output_attentions = True
    model = kind._from_config(config, attn_implementation=attention)
    masked = draw(st.booleans())
    labelled = classify and draw(st.booleans())

    def inputs(batch: int, length: int) -> Inputs:
        kwargs: dict[str, Tensor] = {"input_ids": torch.randint(2, 40, (batch, length))}
        if masked:
            kwargs["attention_mask"] = (torch.arange(length)[None] < torch.randint(1, length + 1, (batch, 1))).long()
        if labelled:
            kwargs["labels"] = torch.randint(0, 2, (batch,))
        return (), kwargs

    return Case(model, inputs(2, 7), [inputs(3, 11), inputs(1, 5)])


@st.composite
def hf_vit(draw: st.DrawFn) -> Case:
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=draw(st.integers(1, 2)),
        num_attention_heads=draw(st.sampled_from([2, 4])),
        intermediate_size=48,
        image_size=32,
        patch_size=16,
        qkv_bias=draw(st.booleans()),
        hidden_dropout_prob=draw(RATES),
        attention_probs_dropout_prob=draw(RATES),
    )
    attention = draw(st.sampled_from(["eager", "sdpa"]))
    kind: Any = draw(st.sampled_from([ViTModel, ViTForImageClassification]))
    model = kind._from_config(config, attn_implementation=attention)
    return _images(model, 32, [(3, 32, 32), (1, 32, 32)])


@st.composite
def unet(draw: st.DrawFn) -> Case:
    cross = draw(st.booleans())
    model = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D" if cross else "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D" if cross else "UpBlock2D"),
        norm_num_groups=8,
        cross_attention_dim=24,
        attention_head_dim=draw(st.sampled_from([8, 16])),
        only_cross_attention=draw(st.booleans()),
        use_linear_projection=draw(st.booleans()),
        resnet_time_scale_shift=draw(st.sampled_from(["default", "scale_shift"])),
        dropout=draw(RATES),
        act_fn=draw(st.sampled_from(["silu", "gelu"])),
        upcast_attention=draw(st.booleans()),
    )
    if not draw(st.booleans()):
        model.set_attn_processor(_eager_processor())

    def inputs(batch: int, size: int, tokens: int) -> Inputs:
        sample = torch.randn(batch, 4, size, size)
        return (sample, torch.randint(0, 1000, (batch,)), torch.randn(batch, tokens, 24)), {}

    return Case(model, inputs(2, 16, 7), [inputs(3, 16, 5), inputs(2, 32, 7)])


def _eager_processor() -> Any:
    from diffusers.models.attention_processor import AttnProcessor

    return AttnProcessor()


FAMILIES = {
    "timm_vit": timm_vit(),
    "timm_convnext": timm_convnext(),
    "timm_resnet": timm_resnet(),
    "bert": hf_text("bert"),
    "roberta": hf_text("roberta"),
    "distilbert": hf_text("distilbert"),
    "hf_vit": hf_vit(),
    "unet": unet(),
}
