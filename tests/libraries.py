"""One vision transformer as two libraries have it, with the same weights; and what is loaded on it."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import fxtune
from fxtune.digests import digest_of
from fxtune.errors import CheckpointError

WIDTH, HEADS, PATCH, SIZE, DEPTH = 24, 3, 8, 16, 2
IMAGES = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))

Rules = Any


# ---- the same network in several hands -----------------------------------------------------------------------------


def in_timm(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    given = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    return VisionTransformer(**{**given, "num_classes": 4, **changes}).eval()


def in_transformers(**changes: Any) -> nn.Module:
    """With the weights of `in_timm`, and its epsilon."""
    given = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * WIDTH,
        "image_size": SIZE,
        "patch_size": PATCH,
        "num_labels": 4,
        "layer_norm_eps": 1e-6,
    }
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**{**given, **changes})).eval()
    if not changes.keys() - {"layer_norm_eps", "hidden_act"}:
        model.load_state_dict(by_their_names(in_timm().state_dict()))
    return model


def by_their_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of timm's ViT under the names that they have in transformers."""
    renamed = {
        "cls_token": "vit.embeddings.cls_token",
        "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
        "norm": "vit.layernorm",
        "head": "classifier",
    }
    for i in range(DEPTH):
        ours, theirs = f"blocks.{i}", f"vit.layers.{i}"
        renamed |= {
            f"{ours}.norm1": f"{theirs}.layernorm_before",
            f"{ours}.norm2": f"{theirs}.layernorm_after",
            f"{ours}.attn.proj": f"{theirs}.attention.o_proj",
            f"{ours}.mlp.fc1": f"{theirs}.mlp.fc1",
            f"{ours}.mlp.fc2": f"{theirs}.mlp.fc2",
        }
    found = {}
    for name, tensor in state.items():
        path, _, last = name.rpartition(".")
        if path.endswith("qkv"):
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                found[f"vit.layers.{path.split('.')[1]}.attention.{part}_proj.{last}"] = piece
        else:
            found[renamed.get(name) or f"{renamed[path]}.{last}"] = tensor
    return found


LIBRARIES: dict[str, Callable[[], nn.Module]] = {"timm": in_timm, "transformers": in_transformers}


def logits(model: nn.Module, inputs: torch.Tensor = IMAGES) -> torch.Tensor:
    with torch.no_grad():
        output = model.eval()(inputs)
    found: torch.Tensor = getattr(output, "logits", output)
    return found


def trained(model: nn.Module, rules: Rules, seed: int = 0, **options: Any) -> Any:
    """A tuned model whose every trained weight has moved."""
    tuned = fxtune.apply(model, rules, seed=seed, **options)
    with torch.no_grad():
        for i, name in enumerate(tuned.trainable):
            weight = tuned.get_parameter(name)
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)), alpha=0.05)
    return tuned.eval()


def loaded(model: nn.Module, folder: Path, **options: Any) -> Any:
    """Loaded without any warning, and the model untouched by it."""
    before = {name: digest_of(tensor) for name, tensor in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuned = fxtune.load(model, folder, **options)
    assert {name: digest_of(tensor) for name, tensor in model.state_dict().items()} == before
    return tuned


def refused(model: nn.Module, folder: Path, match: str) -> None:
    """Refused, and nothing of it done: the model is as it was, and no warning came before."""
    before = {name: digest_of(tensor) for name, tensor in model.state_dict().items()}
    with warnings.catch_warnings(), pytest.raises(CheckpointError, match=match):
        warnings.simplefilter("error")
        fxtune.load(model, folder)
    assert {name: digest_of(tensor) for name, tensor in model.state_dict().items()} == before
    assert not [name for name, _ in model.named_modules() if "tuners" in name]
