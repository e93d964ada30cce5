"""Small members of many model families for tests of the two forms: models with every weight drawn, and their inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import diffusers
import timm
import timm.layers
import torch
import torchvision
import transformers
from hypothesis import strategies as st
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model in eval mode, what it is captured with, other inputs for it, and how it was drawn."""

    name: str
    model: nn.Module
    example: Inputs
    others: list[Inputs]
    drawn: dict[str, Any]
    float64: bool = True
    """Whether it is captured in float64; else in float32, and the tuned model is cast."""

    def __repr__(self) -> str:
        return f"{self.name} {self.drawn}"


def awake(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with every parameter drawn anew, no weight or bias of it zero; what was one stays near it."""
    made = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=made).to(parameter.dtype)
        if parameter.dim() > 1:
            parameter.data = drawn * (1.5 / parameter[0].numel() ** 0.5)
        else:
            parameter.data = drawn * 0.3 + (1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)
    return model.eval()


def _images(batch: int, size: int = 32) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))


def _image_case(name: str, model: nn.Module, drawn: dict[str, Any], *, key: str = "x", size: int = 32) -> Case:
    return Case(name, awake(model), {key: _images(2, size)}, [{key: _images(n, size)} for n in (3, 1)], drawn)


@st.composite
def timm_vit(draw: st.DrawFn) -> Case:
    pool = draw(st.sampled_from(["token", "avg"]))
    fused = draw(st.booleans())
    drawn = {
        "embed_dim": 30,
        "depth": draw(st.sampled_from([1, 2])),
        "num_heads": draw(st.sampled_from([1, 3, 6])),  # 6: heads of five channels, as many as there are tokens
        "qkv_bias": draw(st.booleans()),
        "qk_norm": draw(st.booleans()),
        "init_values": draw(st.sampled_from([None, 0.5])),
        "class_token": True if pool == "token" else draw(st.booleans()),
        "reg_tokens": draw(st.sampled_from([0, 0, 2])),
        "global_pool": pool,
        "dynamic_img_size": draw(st.booleans()),
    }
    timm.layers.set_fused_attn(fused)
    try:
        model = VisionTransformer(img_size=32, patch_size=16, num_classes=5, **drawn)
    finally:
        timm.layers.set_fused_attn(True)
    return _image_case("timm_vit", model, {**drawn, "fused": fused})


@st.composite
def swin(draw: st.DrawFn) -> Case:
    fused = draw(st.booleans())
    drawn = {"qkv_bias": draw(st.booleans()), "depths": draw(st.sampled_from([(1,), (2,)]))}
    timm.layers.set_fused_attn(fused)
    try:
        model = SwinTransformer(
            img_size=32, patch_size=4, window_size=4, embed_dim=12, num_heads=(2,), num_classes=5, **drawn
        )
    finally:
        timm.layers.set_fused_attn(True)
    return _image_case("swin", model, {**drawn, "fused": fused})


@st.composite
def eva(draw: st.DrawFn) -> Case:
    fused = draw(st.booleans())
    drawn = {"depth": draw(st.sampled_from([1, 2])), "num_heads": draw(st.sampled_from([1, 2]))}
    timm.layers.set_fused_attn(fused)
    try:
        model = timm.create_model("eva02_tiny_patch14_224", img_size=28, embed_dim=32, num_classes=3, **drawn)
    finally:
        timm.layers.set_fused_attn(True)
    return _image_case("eva", model, {**drawn, "fused": fused}, size=28)


@st.composite
def torchvision_vit(draw: st.DrawFn) -> Case:
    drawn = {"num_layers": draw(st.sampled_from([1, 2])), "num_heads": draw(st.sampled_from([1, 4]))}
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=16, hidden_dim=16, mlp_dim=24, num_classes=5, **drawn
    )
    return _image_case("torchvision_vit", model, drawn)


@st.composite
def hf_vit(draw: st.DrawFn) -> Case:
    attention = draw(st.sampled_from(["eager", "sdpa"]))
    drawn = {"num_hidden_layers": draw(st.sampled_from([1, 2])), "qkv_bias": draw(st.booleans())}
    config = transformers.ViTConfig(
        hidden_size=32, num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=16, num_labels=3, **drawn
    )
    model = transformers.ViTForImageClassification._from_config(config, attn_implementation=attention)
    return _image_case("hf_vit", model, {**drawn, "attention": attention}, key="pixel_values")


def _text(batch: int, length: int, *, padded: bool, embedded: int = 0) -> Inputs:
    """Token numbers, or their embeddings; the mask leaves a sample nothing where `padded`."""
    made = torch.Generator().manual_seed(100 * batch + length)
    ids = torch.randint(2, 40, (batch, length), generator=made)
    inputs: Inputs = {"input_ids": ids}
    if embedded:
        inputs = {"inputs_embeds": torch.randn(batch, length, embedded, generator=made)}
    if padded:
        mask = torch.ones(batch, length, dtype=torch.long)
        mask[0, max(1, length // 2) :] = 0
        inputs["attention_mask"] = mask
    return inputs


def _text_case(name: str, model: nn.Module, drawn: dict[str, Any], *, float64: bool = True, **more: Any) -> Case:
    padded, embedded = drawn["padded"], 32 if drawn["embedded"] else 0
    shapes = [(3, 4), (1, 11), (2, 1)]
    others = [{**_text(n, t, padded=padded, embedded=embedded), **more} for n, t in shapes]
    # A sample of padding only. With a softmax in float32 the library's attention makes it NaN in float64.
    if padded and (float64 or drawn["attention"] == "sdpa"):
        others[0]["attention_mask"][1] = 0
    example = {**_text(2, 8, padded=padded, embedded=embedded), **more}
    return Case(name, awake(model), example, others, drawn, float64)


def _drawn_text(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "layers": draw(st.sampled_from([1, 2])),
        "attention": draw(st.sampled_from(["eager", "sdpa"])),
        "padded": draw(st.booleans()),
        "embedded": draw(st.booleans()),
    }


@st.composite
def encoder(draw: st.DrawFn, family: str) -> Case:
    drawn = _drawn_text(draw)
    heads = drawn["heads"] = draw(st.sampled_from([1, 4]))
    if family == "distilbert":
        config: Any = transformers.DistilBertConfig(
            vocab_size=40, dim=32, n_layers=drawn["layers"], n_heads=heads, hidden_dim=48, max_position_embeddings=24
        )
        kind: Any = transformers.DistilBertModel
    else:
        kinds = {"bert": transformers.BertModel, "roberta": transformers.RobertaModel}
        kind = kinds.get(family, transformers.AlbertModel)
        more = {"embedding_size": 32} if family == "albert" else {}
        config = kind.config_class(
            vocab_size=40,
            hidden_size=32,
            num_hidden_layers=2 if family == "albert" else drawn["layers"],
            num_attention_heads=heads,
            intermediate_size=48,
            max_position_embeddings=24,
            **more,
        )
    model = kind._from_config(config, attn_implementation=drawn["attention"])
    return _text_case(family, model, drawn)


@st.composite
def decoder(draw: st.DrawFn, family: str) -> Case:
    drawn = _drawn_text(draw)
    small = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": drawn["layers"], "use_cache": False}
    if family == "gpt2":
        config: Any = transformers.GPT2Config(
            vocab_size=40, n_embd=32, n_layer=drawn["layers"], n_head=4, n_positions=64, use_cache=False,
            bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        kind: Any = transformers.GPT2Model
    elif family == "llama":
        drawn["kv_heads"] = draw(st.sampled_from([1, 2, 4]))
        config = transformers.LlamaConfig(
            **small, num_attention_heads=4, num_key_value_heads=drawn["kv_heads"], intermediate_size=48
        )
        kind = transformers.LlamaModel
    elif family == "falcon":
        # One head of keys and values, which an index takes out of the fused projection.
        config = transformers.FalconConfig(**small, num_attention_heads=4, ffn_hidden_size=48, parallel_attn=False)
        kind = transformers.FalconModel
    else:
        drawn["kv_heads"] = draw(st.sampled_from([1, 2]))
        config = transformers.Qwen3Config(
            **small, num_attention_heads=2, num_key_value_heads=drawn["kv_heads"], intermediate_size=48, head_dim=8
        )
        kind = transformers.Qwen3Model
    model = kind._from_config(config, attn_implementation=drawn["attention"])
    return _text_case(family, model, drawn, float64=family == "gpt2", use_cache=False)


@st.composite
def encoder_decoder(draw: st.DrawFn, family: str) -> Case:
    drawn = {"attention": draw(st.sampled_from(["eager", "sdpa"])), "padded": family == "t5" or draw(st.booleans())}
    layers = drawn["layers"] = draw(st.sampled_from([1, 2]))
    if family == "t5":
        config: Any = transformers.T5Config(
            vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_decoder_layers=layers, num_heads=4,
            use_cache=False, feed_forward_proj=draw(st.sampled_from(["relu", "gated-gelu"])), decoder_start_token_id=0,
        )  # fmt: skip
        kind: Any = transformers.T5Model
    else:
        config = transformers.BartConfig(
            vocab_size=40, d_model=32, encoder_layers=1, decoder_layers=layers, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=32,
            use_cache=False,
        )  # fmt: skip
        kind = transformers.BartModel
    model = kind._from_config(config, attn_implementation=drawn["attention"])

    def inputs(batch: int, length: int, target: int) -> Inputs:
        made = _text(batch, length, padded=drawn["padded"])
        return {**made, "decoder_input_ids": _text(batch, target, padded=False)["input_ids"], "use_cache": False}

    others = [inputs(3, 4, 7), inputs(1, 6, 3)]
    return Case(family, awake(model), inputs(2, 8, 5), others, drawn, float64=family != "t5")


@st.composite
def unet(draw: st.DrawFn) -> Case:
    drawn = {"linear": draw(st.booleans()), "heads": draw(st.sampled_from([1, 2]))}
    model = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16,),
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=drawn["heads"],  # that is their number
        use_linear_projection=drawn["linear"],
    )

    def inputs(batch: int, size: int, tokens: int) -> Inputs:
        made = torch.Generator().manual_seed(batch)
        return {
            "sample": torch.randn(batch, 4, size, size, generator=made),
            "timestep": torch.arange(1, batch + 1),
            "encoder_hidden_states": torch.randn(batch, tokens, 12, generator=made),
        }

    return Case("unet", awake(model), inputs(2, 8, 5), [inputs(3, 8, 9), inputs(1, 16, 2)], drawn)


FAMILIES: dict[str, st.SearchStrategy[Case]] = {
    "timm_vit": timm_vit(),
    "swin": swin(),
    "eva": eva(),
    "torchvision_vit": torchvision_vit(),
    "hf_vit": hf_vit(),
    **{name: encoder(name) for name in ("bert", "distilbert", "roberta", "albert")},
    **{name: decoder(name) for name in ("gpt2", "llama", "falcon", "qwen3")},
    **{name: encoder_decoder(name) for name in ("t5", "bart")},
    "unet": unet(),
}
