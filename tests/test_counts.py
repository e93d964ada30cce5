"""How many weights each method trains: by formulas over width, depth and settings, all drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import fxtune
from effort import examples
from fxtune.tuned import one_capture


@dataclass(frozen=True)
class Sizes:
    """Of a transformer with L Blocks of width D, a hidden width H in their FFNs and C classes; and of tuners."""

    D: int
    L: int
    H: int
    C: int
    m: int
    P: int
    r: int

    @property
    def head(self) -> int:
        return (self.D + 1) * self.C

    @property
    def bottleneck(self) -> int:
        return 2 * self.D * self.m + self.m + self.D

    @property
    def channels(self) -> int:
        """Output channels of every norm and linear map of a Block: two norms, q, k, v, the projection, the FFN."""
        return 7 * self.D + self.H


@st.composite
def sizes(draw: st.DrawFn) -> Sizes:
    D = 8 * draw(st.integers(2, 6))
    return Sizes(
        D=D,
        L=draw(st.integers(1, 4)),
        H=D * draw(st.integers(1, 4)),
        C=draw(st.integers(2, 9)),
        m=draw(st.integers(1, 20)),
        P=draw(st.integers(1, 12)),
        r=draw(st.integers(1, 8)),
    )


# What is counted besides the head. A setting that a method has is drawn; `{}`: the rule set's own.


def everywhere(s: Sizes) -> dict[str, tuple[dict[str, Any], int]]:
    """Method -> settings, and the weights that they train on any transformer."""
    return {
        "linear": ({}, 0),
        "adapter": ({"dim": s.m}, s.L * s.bottleneck),
        "adapter_houlsby": ({"dim": s.m}, 2 * s.L * s.bottleneck),
        "adaptformer": ({"dim": s.m}, s.L * s.bottleneck),
        "mam_adapter": ({"dim": s.m, "tokens": s.P}, s.L * (s.bottleneck + 2 * s.P * s.D)),
        "prefix": ({"tokens": s.P}, s.L * 2 * s.P * s.D),
        "prompt": ({"tokens": s.P}, s.L * s.P * s.D),
        "vpt_shallow": ({"tokens": s.P}, s.P * s.D),
        "vpt_deep": ({"tokens": s.P}, s.L * s.P * s.D),
        "single_adapter_block": ({"dim": s.m}, s.L * s.bottleneck),
        "single_prefix_ffn": ({"tokens": s.P}, s.L * 2 * s.P * s.D),
        "dual_res": ({"dim": s.m}, 2 * s.L * (s.bottleneck + s.D)),
        "tri_res": ({"dim": s.m}, 2 * s.L * (s.bottleneck + s.D) + s.L * s.bottleneck),
        "res_bypass_none": ({}, s.L),
        "res_bypass_horizontal": ({"dim": s.m}, s.L * (s.bottleneck + 1)),
        "res_bypass_vertical": ({"dim": s.m}, s.L * (s.bottleneck + 1)),
        "res_bypass": ({"dim": s.m}, s.L * (2 * s.bottleneck + 1)),
    }


def check(model: nn.Module, expected: dict[str, tuple[dict[str, Any], int]], head: int, inputs: Any) -> None:
    with one_capture():
        for method, (own, tuners) in expected.items():
            report = fxtune.inspect(model, method, example_inputs=inputs, **own).report
            assert report is not None
            assert report.trainable == head + tuners, f"{method} {own}"


@given(sizes())
@settings(max_examples=examples(8, 60))
def test_a_vision_transformer(s: Sizes) -> None:
    """Fused qkv; a patch embedding and a final norm besides the Blocks."""
    with torch.device("meta"):
        model = VisionTransformer(
            img_size=32, patch_size=16, embed_dim=s.D, depth=s.L, num_heads=2, mlp_ratio=s.H / s.D, num_classes=s.C
        )
    expected = everywhere(s) | {
        "full": ({}, sum(p.numel() for p in model.parameters()) - s.head),
        "lora": ({"rank": s.r}, s.L * s.r * (s.D + 3 * s.D)),
        "noah": ({}, s.L * (10 * s.D + 10 * (s.D + 3 * s.D) + 2 * s.D * 10 + 10 + s.D)),
        "bitfit": ({}, s.L * s.channels + 2 * s.D + s.C),
        "ssf": ({}, 2 * (s.L * s.channels + 2 * s.D)),
    }
    check(model, expected, s.head, (torch.empty(2, 3, 32, 32, device="meta"),))


@given(sizes())
@settings(max_examples=examples(8, 60))
def test_a_text_encoder(s: Sizes) -> None:
    """Split projections; a norm of the embeddings and a pooler besides the Blocks."""
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=s.D, num_hidden_layers=s.L, num_attention_heads=2, intermediate_size=s.H,
        max_position_embeddings=12, num_labels=s.C,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.BertForSequenceClassification(config)
    expected = everywhere(s) | {
        "full": ({}, sum(p.numel() for p in model.parameters()) - s.head),
        "lora": ({"rank": s.r}, s.L * 3 * s.r * (s.D + s.D)),
        "noah": ({}, s.L * (10 * s.D + 10 * 2 * (s.D + s.D) + 2 * s.D * 10 + 10 + s.D)),
        "bitfit": ({}, s.L * s.channels + 2 * s.D + s.C),
        "ssf": ({}, 2 * (s.L * s.channels + s.D)),
    }
    ids = torch.ones(2, 7, dtype=torch.long, device="meta")
    check(model, expected, s.head, {"input_ids": ids, "attention_mask": ids})


def test_roberta_base() -> None:
    """Its head is two layers, ``classifier.dense`` and ``classifier.out_proj``."""
    with torch.device("meta"):
        model = transformers.RobertaForSequenceClassification(
            transformers.RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=2)
        )
    s = Sizes(D=768, L=12, H=3072, C=2, m=10, P=10, r=8)
    expected = {
        "linear": ({}, 0),
        "lora": ({}, 442_368),
        "bitfit": ({}, s.L * s.channels + s.D + s.D + s.C),
        "prefix": ({}, 184_320),
        "tri_res": ({}, 3 * s.L * s.bottleneck + 2 * s.L * s.D),
        "adapter": ({"dim": 48}, 12 * (2 * 768 * 48 + 48 + 768)),
        "res_bypass": ({"dim": 10}, s.L * (2 * s.bottleneck + 1)),
    }
    ids = torch.ones(2, 7, dtype=torch.long, device="meta")
    check(model, expected, 768 * 768 + 768 + s.head, {"input_ids": ids, "attention_mask": ids})


def test_the_unet_of_stable_diffusion() -> None:
    """16 transformer blocks, five of width 320, five of 640 and six of 1280, whose second attention reads 768."""
    with torch.device("meta"):
        model = diffusers.UNet2DConditionModel(cross_attention_dim=768)
    widths = [320] * 5 + [640] * 5 + [1280] * 6
    D, n, text = sum(widths), len(widths), 768
    biases = sum(p.numel() for name, p in model.named_parameters() if name.endswith("bias"))
    expected = {
        "prefix": ({"tokens": 100}, 2 * 2 * 100 * D),
        "prompt": ({"tokens": 50}, 50 * (D + n * text)),
        "adapter": ({"dim": 100}, 2 * 100 * D + n * 100 + D),
        "lora": ({"rank": 50}, 50 * (3 * 2 * D + 2 * D + 2 * (D + n * text))),
        "dual_res": ({"dim": 10}, 3 * (2 * 10 * D + n * 10 + 2 * D)),
        "bitfit": ({}, biases),
    }
    inputs = {
        "sample": torch.empty(2, 4, 64, 64, device="meta"),
        "timestep": torch.ones(2, dtype=torch.long, device="meta"),
        "encoder_hidden_states": torch.empty(2, 77, text, device="meta"),
    }
    check(model, expected, 0, inputs)  # it has no head: its output is an image


@pytest.mark.parametrize("wrong", ["a term too many", "a block too few"])
def test_a_wrong_formula_is_noticed(wrong: str) -> None:
    s = Sizes(D=16, L=2, H=32, C=3, m=4, P=3, r=2)
    with torch.device("meta"):
        model = VisionTransformer(img_size=32, patch_size=16, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2,
                                  num_classes=3)  # fmt: skip
    tuners = s.L * s.bottleneck + 1 if wrong == "a term too many" else (s.L - 1) * s.bottleneck
    with pytest.raises(AssertionError):
        check(model, {"adapter": ({"dim": s.m}, tuners)}, s.head, (torch.empty(2, 3, 32, 32, device="meta"),))
