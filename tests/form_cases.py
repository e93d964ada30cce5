"""Methods, and single models by what they are to have, for tests of the two forms."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from hypothesis import Phase, find, settings
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import fxtune
from form_models import FAMILIES, awake
from forms import Captured, apart, awaken, run

METHODS: dict[str, Any] = {
    "prefix": "prefix",
    "prompt": "prompt",
    "vpt_deep": {"rules": [{"at": "block", "insert": "vpt"}]},
    "adapter": "adapter_houlsby",
    "lora": "lora",
    "bitfit": "bitfit",
}

REFUSED: dict[tuple[str, str], str] = {
    ("vpt_deep", "swin"): "not batch x tokens x channels",  # windows of a grid
    ("vpt_deep", "unet"): "it has no attention",  # its first Block is a resnet block
    ("bitfit", "llama"): "no rule of bitfit matched anything",  # no biases
    ("bitfit", "t5"): "no rule of bitfit matched anything",
    ("bitfit", "qwen3"): "no rule of bitfit matched anything",
}

QUICK = settings(max_examples=500, phases=[Phase.generate])


def small_vit(**changes: Any) -> nn.Module:
    drawn = {"embed_dim": 16, "depth": 2, "num_heads": 2, "init_values": 0.5, "qk_norm": True, **changes}
    return awake(VisionTransformer(img_size=32, patch_size=16, num_classes=3, **drawn))


def small_bert(**changes: Any) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **changes,
    )  # fmt: skip
    return awake(transformers.BertModel(config))


def sentences(batch: int, length: int, **more: Any) -> dict[str, Any]:
    ids = torch.randint(0, 40, (batch, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[0, (length + 1) // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask, **more}


def pair(model: nn.Module, rule: Any, inputs: Any, **settings: Any) -> tuple[Any, Any]:
    """Tuned models of both forms with the same drawn weights, in eval mode."""
    unbound, original = (
        fxtune.apply(model, rule, example_inputs=inputs, seed=1, form=form, **settings).eval()
        for form in ("unbound", "original")
    )
    awaken(unbound)
    original.load_state_dict(unbound.state_dict())
    return unbound, original


def planted(family: str, **wanted: Any) -> Captured:
    """The captured model of a family that was drawn with these features."""
    case = find(FAMILIES[family], lambda case: all(case.drawn.get(k) == v for k, v in wanted.items()), settings=QUICK)
    return Captured(case)


def check(what: str, captured: Captured, ours: nn.Module, theirs: nn.Module, tolerance: float = 1e-10) -> None:
    """Outputs to 1e-12, gradients to `tolerance`, on every input of the model."""
    for inputs in captured.inputs():
        outputs, gradients = apart(run(ours, inputs), run(theirs, inputs))
        shapes = {name: tuple(x.shape) for name, x in inputs.items() if isinstance(x, torch.Tensor)}
        assert outputs <= 1e-12 and gradients <= tolerance, (what, captured.case, shapes, outputs, gradients)
