"""Networks beside the backbone, by the bypass: ladder side-tuning and side-tuning, against both written by hand."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import timm
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bypass_reference as blocks
import fxtune
import side_reference as reference
from effort import examples
from families import FAMILIES, build
from fxtune.errors import FxtuneError, PlanError, RuleError

LAYERS: dict[str, Any] = {"layers": [[8, 3, 2, 1], "pool", [16, 3, 2, 1]], "positions": 2, "dim": 8}
"""A side network for small images and texts."""

WIDER: dict[str, Any] = {"bypass": {"reduce": 4, "temperature": 0.1, "mixed": "side_block"}}
"""A ladder beside small models: a norm of two channels tells nothing but which one is larger."""

HEADS = {"vit": 4, "bert": 4, "convnext": 1, "resnet": 1}


def double(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}


def weights_of(tuned: nn.Module, seed: int) -> dict[str, Tensor]:
    """The bypass's weights, drawn anew, by their names in it."""
    (path,) = (path for path, _ in tuned.named_modules() if path.endswith("tuners.bypass"))
    made = torch.Generator().manual_seed(seed)
    found = dict(tuned.get_submodule(path).named_parameters())
    with torch.no_grad():
        for name, weight in found.items():
            scale = 0.1 if name.endswith("mix.weight") else 1 / max(1, weight[0].numel()) ** 0.5
            weight.copy_(torch.randn(weight.shape, generator=made, dtype=weight.dtype) * scale)
    return found


def compare(tuned: nn.Module, expected: Any, inputs: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Outputs to 1e-12, gradients of every weight to 1e-10."""
    found = tuned(**inputs)
    assert blocks.error(found, expected) <= 1e-12
    gradients = []
    for output in (found, expected):
        total: Any = sum(x.square().sum() for x in blocks.tensors(output))
        gradients.append(torch.autograd.grad(total, list(weights.values())))
    largest = max(float(g.abs().max()) for g in gradients[1])
    for name, g, e in zip(weights, *gradients, strict=True):
        assert float((g - e).abs().max()) <= 1e-10 * largest, name


@functools.cache
def beside(family: str, rules: str, reduce: int) -> tuple[nn.Module, nn.Module]:
    """A model, and its tuned form."""
    model = build(family).double()
    given = {"bypass": {**WIDER["bypass"], "reduce": reduce}} if rules == "lst" else rules
    options: dict[str, Any] = LAYERS if rules == "side_tuning" else {}
    inputs = double(FAMILIES[family].inputs(2))
    return model, fxtune.apply(model, given, seed=0, dtype=torch.float64, example_inputs=((), inputs), **options).eval()


@pytest.mark.parametrize("family", sorted(HEADS))
@given(seed=st.integers(0, 2**31), reduce=st.sampled_from([2, 4]), batch=st.integers(1, 4))
@settings(max_examples=examples(6, 100))
def test_the_ladder(family: str, seed: int, reduce: int, batch: int) -> None:
    model, tuned = beside(family, "lst", reduce)
    inputs, weights = double(FAMILIES[family].inputs(batch)), weights_of(tuned, seed)
    heads = math.gcd(HEADS[family], 32 // reduce)
    compare(tuned, reference.with_ladder(model, family, inputs, weights, heads), inputs, weights)


@pytest.mark.parametrize("family", sorted(HEADS))
@given(seed=st.integers(0, 2**31), batch=st.integers(1, 4))
@settings(max_examples=examples(6, 100))
def test_the_side_network(family: str, seed: int, batch: int) -> None:
    model, tuned = beside(family, "side_tuning", 1)
    inputs, weights = double(FAMILIES[family].inputs(batch)), weights_of(tuned, seed)
    expected = reference.with_side(model, family, FAMILIES[family].head, inputs, weights, HEADS[family])
    compare(tuned, expected, inputs, weights)


@pytest.mark.parametrize("family", sorted(HEADS))
@pytest.mark.parametrize("rules", ["lst", "side_tuning"])
def test_no_gradient_enters_the_backbone(rules: str, family: str) -> None:
    inputs = FAMILIES[family].inputs(2)
    options = LAYERS if rules == "side_tuning" else {}
    tuned = fxtune.apply(build(family), rules, seed=0, example_inputs=((), inputs), **options)
    for weight in tuned.parameters():
        weight.requires_grad_(True)
    FAMILIES[family].loss(tuned(**inputs), 2).backward()
    trunk = {name for name, weight in tuned.named_parameters() if weight.grad is None}
    assert trunk and not any("tuners" in name for name in trunk)
    assert all("tuners" in name or _behind(family, name) for name, _ in tuned.named_parameters() if name not in trunk)


def _behind(family: str, name: str) -> bool:
    """Whether a weight stands behind the last Block."""
    return name.startswith(("norm.", "head.", "classifier.", "bert.pooler.", "fc."))


@pytest.mark.parametrize("rules", ["lst", "side_tuning"])
def test_padding_is_not_seen(rules: str) -> None:
    """What stands in the place of padding changes nothing: the model's mask holds beside it, too."""
    inputs = FAMILIES["bert"].inputs(3)
    options = LAYERS if rules == "side_tuning" else {}
    given = WIDER if rules == "lst" else rules
    tuned = fxtune.apply(build("bert"), given, seed=0, example_inputs=((), inputs), **options).eval()
    weights_of(tuned, 1)
    others = (inputs["input_ids"] + 7) % 40
    padded = inputs["attention_mask"] == 0
    assert padded.any()
    changed = {**inputs, "input_ids": torch.where(padded, others, inputs["input_ids"])}
    seen = {**inputs, "input_ids": torch.where(padded, inputs["input_ids"], others)}
    with torch.no_grad():
        plain, same, other = (tuned(**given).logits for given in (inputs, changed, seen))
    assert torch.allclose(plain, same, atol=1e-6) and not torch.allclose(plain, other, atol=1e-3)


def test_what_comes_later_is_not_seen() -> None:
    """A causal model stays one."""
    config = transformers.GPT2Config(
        vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=4, use_cache=False, attn_implementation="sdpa"
    )
    inputs = {"input_ids": torch.arange(16).reshape(2, 8)}
    model = transformers.GPT2LMHeadModel(config).eval()
    tuned = fxtune.apply(model, WIDER, seed=0, example_inputs=((), inputs)).eval()
    weights_of(tuned, 1)
    later = {"input_ids": torch.cat([inputs["input_ids"][:, :5], torch.full((2, 3), 30)], 1)}
    with torch.no_grad():
        one, other = (tuned(**given).logits for given in (inputs, later))
    assert torch.allclose(one[:, :5], other[:, :5], atol=1e-5) and not torch.allclose(one[:, 5:], other[:, 5:])


# ---- counts ----------------------------------------------------------------------------------------------------------


def trained(tuned: nn.Module) -> int:
    return sum(weight.numel() for weight in tuned.parameters() if weight.requires_grad)


@given(
    width=st.integers(2, 8).map(lambda n: 16 * n),
    depth=st.integers(1, 4),
    ratio=st.integers(1, 5),
    reduce=st.integers(2, 20),
)
@settings(max_examples=examples(10, 100))
def test_counts_of_the_ladder(width: int, depth: int, ratio: int, reduce: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, embed_dim=width, depth=depth, num_heads=4, num_classes=5
        )
    rules = {"bypass": {"reduce": reduce, "mixed": {"side_block": {"mlp_ratio": ratio}}}}
    d = width // reduce or 1
    downs = (depth + 1) * (width * d + d)
    block = 4 * d + (3 * d * d + 3 * d) + (d * d + d) + (2 * ratio * d * d + ratio * d + d)
    end = 2 * d + d * width + width
    assert trained(fxtune.apply(model, rules)) == downs + depth * (block + 1) + end + 5 * (width + 1)


def test_published_sizes() -> None:
    """ViT-B/16: a ladder of width 48, and AlexNet's features with a map from 9216."""
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", num_classes=100)
    head = 769 * 100
    block = 4 * 48 + 4 * (48 * 48 + 48) + 8 * 48 * 48 + 5 * 48
    assert trained(fxtune.apply(model, "lst")) - head == 13 * 769 * 48 + 12 * (block + 1) + 96 + 49 * 768
    layers = [(3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3)]
    alexnet = sum(wide * (narrow * kernel**2 + 1) for narrow, wide, kernel in layers)
    assert trained(fxtune.apply(model, "side_tuning")) - head == alexnet + 9216 * 768 + 1


# ---- what is refused -------------------------------------------------------------------------------------------------


def vit(**options: Any) -> nn.Module:
    sizes = {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 3}
    return timm.create_model("vit_tiny_patch16_224", **{**sizes, **options}).eval()


REFUSED: dict[str, tuple[Any, Any, type[FxtuneError], str]] = {
    "small images": (
        vit,
        {"bypass": {"along": "backbone", "vertical": {"side_network": {"layers": [[8, 3, 4, 0], [8, 9, 1, 0]]}}}},
        RuleError,
        r"images of 32 x 32, of which layer 1, \[8, 9, 1, 0\], leaves nothing",
    ),
    "no head": (lambda: vit(num_classes=0), "side_tuning", PlanError, "along the backbone cannot be spliced in"),
    "a unit": (
        vit,
        {"rules": [{"at": "ffn", "insert": "side_block"}]},
        RuleError,
        "side_block goes on a bypass alone",
    ),
    "a network on another side": (vit, {"bypass": {"mixed": "side_network"}}, PlanError, r"side_network .* \(mixed\)"),
    "a network between tokens and tokens": (
        vit,
        {"bypass": {"along": "block", "vertical": "convpass"}},
        PlanError,
        "convpass does not go on a bypass",
    ),
    "no width": (vit, {"bypass": {"reduce": 1}}, FxtuneError, "reduce"),
    "no temperature": (vit, {"bypass": {"temperature": 0}}, FxtuneError, "temperature"),
    "masks by head": (
        lambda: transformers.BeitForImageClassification(
            transformers.BeitConfig(
                image_size=32, patch_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                intermediate_size=32, use_relative_position_bias=True,
            )
        ).eval(),
        "lst",
        PlanError,
        "is no mask of 5 tokens for all heads",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what: str) -> None:
    make, rules, error, message = REFUSED[what]
    with pytest.raises(error, match=message):
        fxtune.apply(make(), rules, example_inputs=torch.randn(2, 3, 32, 32))


def test_small_images_go_through_the_published_layers() -> None:
    """Pools for which too little is left are left out, and the weights are those for any image."""
    small, usual = (fxtune.apply(vit(img_size=size), "side_tuning", seed=0) for size in (32, 64))
    assert trained(small) == trained(usual)
    assert torch.isfinite(small(torch.randn(2, 3, 32, 32))).all()
    layers = [str(module) for module in small.modules() if "MaxPool" in type(module).__name__]
    assert len(layers) == 2
