"""Sites against the truth counted from module classes, on the meta device, at the sizes that people use."""

import functools
from collections.abc import Callable, Iterator

import diffusers
import pytest
import timm
import torch
import transformers
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from diffusers.models.attention_processor import Attention as DiffusersAttention
from diffusers.models.resnet import ResnetBlock2D
from timm.layers import Mlp
from timm.models.convnext import ConvNeXtBlock
from timm.models.resnet import BasicBlock, Bottleneck
from timm.models.vision_transformer import Attention as TimmAttention
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn
from transformers.models.bert.modeling_bert import BertAttention, BertIntermediate, BertLayer

from fxtune import capture
from fxtune.matching import Site, Sites
from fxtune.patterns import load_patterns
from fxtune.view import view


def stable_diffusion_unet() -> nn.Module:
    """The U-Net of Stable Diffusion 1.5; the class's defaults but for the width of the text condition."""
    return diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "ViT-B/16": (lambda: timm.create_model("vit_base_patch16_224"), (12, 12, 12)),
    "ViT-L/14 CLIP": (lambda: timm.create_model("vit_large_patch14_clip_224"), (24, 24, 24)),
    "BERT-base": (lambda: transformers.BertModel(transformers.BertConfig()), (12, 12, 12)),
    "ConvNeXt-B": (lambda: timm.create_model("convnext_base"), (0, 36, 36)),
    "ResNet-101": (lambda: timm.create_model("resnet101"), (0, 0, 33)),
    "Stable Diffusion 1.5 U-Net": (stable_diffusion_unet, (32, 16, 38)),
}
"""Each model, and its number of MHA, FFN and Blocks."""

MHA = (TimmAttention, BertAttention, DiffusersAttention)
FFN = (Mlp, BertIntermediate, FeedForward)
BLOCK = (TimmBlock, BertLayer, ConvNeXtBlock, Bottleneck, BasicBlock, BasicTransformerBlock, ResnetBlock2D)


@functools.cache
def found(name: str) -> tuple[nn.Module, Sites]:
    with torch.device("meta"):
        model = MODELS[name][0]()
    return model, Sites(view(capture(model)), load_patterns())


def paths(model: nn.Module, classes: tuple[type, ...]) -> Iterator[str]:
    return (path for path, module in model.named_modules() if isinstance(module, classes))


@pytest.mark.parametrize("name", MODELS)
def test_counts_are_those_of_the_module_classes(name: str) -> None:
    model, sites = found(name)
    truth = tuple(len(list(paths(model, classes))) for classes in (MHA, FFN, BLOCK))
    assert truth == MODELS[name][1]
    assert tuple(len(sites.of(kind)) for kind in ("mha", "ffn", "block")) == truth


@pytest.mark.parametrize("name", MODELS)
def test_each_site_lies_in_its_module(name: str) -> None:
    """Not only as many: each one in the module that it is."""
    model, sites = found(name)
    for kind, classes in (("mha", MHA), ("block", BLOCK)):
        assert [site.path for site in sites.of(kind)] == sorted(paths(model, classes), key=_order(sites.of(kind)))
    # The innermost module that holds all of it: BERT's spans two siblings, ConvNeXt's layer scale stands beside it, and
    # in the U-Net a list of modules lies between.
    for site, path in zip(sites.of("ffn"), sorted(paths(model, FFN), key=_order(sites.of("block"))), strict=True):
        assert site.path == _parent(path) or f"{site.path}.".startswith(f"{path}.")


def _order(sites: list[Site]) -> Callable[[str], int]:
    """The number of the site that a module path is, or lies in."""
    return lambda path: next(s.index for s in sites if f"{path}.".startswith(f"{s.path}."))


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def test_the_unet_has_both_sorts_of_blocks() -> None:
    model, sites = found("Stable Diffusion 1.5 U-Net")
    with_attention = [site.path for site in sites.of("block") if site.heads > 1]
    assert sorted(with_attention) == sorted(paths(model, (BasicTransformerBlock,)))
    assert len(with_attention) == 16
    assert len(sites.of("block")) - 16 == len(list(paths(model, (ResnetBlock2D,)))) == 22


def test_cross_attention_is_told_from_self_attention() -> None:
    _, sites = found("Stable Diffusion 1.5 U-Net")
    for site in sites.of("mha"):
        assert site.attention is not None
        assert site.attention.cross == site.path.endswith("attn2")


@pytest.mark.parametrize("name", ["ViT-B/16", "ViT-L/14 CLIP", "BERT-base", "Stable Diffusion 1.5 U-Net"])
def test_geometry_of_attention(name: str) -> None:
    model, sites = found(name)
    for site in sites.of("mha"):
        module = model.get_submodule(site.path)
        attention = site.attention
        assert attention is not None
        heads = next(
            v for m in (module, getattr(module, "self", module)) for k, v in vars(m).items() if "heads" in k and v
        )
        assert (attention.heads, attention.kv_heads) == (heads, heads)
        assert attention.heads * attention.head_dim == site.width
        q, k, v = (sites.view.values[i].shape for i in (attention.q, attention.k, attention.v))
        assert (q[1], q[3], k[1], v[3]) == (heads, attention.head_dim, heads, attention.head_dim)
        weights = dict(model.named_parameters())
        for weight in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
            assert weight.startswith(site.path) and weight in weights


def test_stages_follow_width_and_resolution() -> None:
    depths = {"ConvNeXt-B": [3, 3, 27, 3], "ResNet-101": [3, 4, 23, 3], "ViT-B/16": [12]}
    for name, wanted in depths.items():
        _, sites = found(name)
        stages = [site.stage for site in sites.of("block")]
        assert [stages.count(stage) for stage in range(len(wanted))] == wanted
        assert stages == sorted(stages)  # type: ignore[type-var]


def test_sites_know_their_block() -> None:
    _, sites = found("BERT-base")
    for kind in ("mha", "ffn"):
        assert [site.block for site in sites.of(kind)] == list(range(12))


def test_layouts() -> None:
    _, sites = found("ConvNeXt-B")
    for block, ffn in zip(sites.of("block"), sites.of("ffn"), strict=True):
        assert block.output.channel_axis == 1 and block.width == ffn.width
        assert block.input.width == block.width


def test_conv_mixers_are_the_depthwise_convolutions() -> None:
    _, sites = found("ConvNeXt-B")
    assert len(sites.of("conv_mixer")) == 36
    assert all(not found(name)[1].of("conv_mixer") for name in MODELS if name != "ConvNeXt-B")


def test_no_near_misses_where_everything_matched() -> None:
    for name in MODELS:
        _, sites = found(name)
        assert sites.near_misses("mha") == []
