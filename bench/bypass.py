"""A training step and the bytes held for its backward: `res_bypass`, full fine-tuning, a linear probe and LoRA.

The U-Net predicts noise and has no head to be probed; it is Stable Diffusion's at half its widths, on two latents of
32 x 32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import peft
import timm
import torch
import transformers
from torch import Tensor, nn

import fxtune
from fxtune.testing import held_bytes
from halved import half_wide_unet, latents
from stepping import stepping
from timing import in_turn, median, ratio

BATCH, CLASSES = 8, 100
Inputs = dict[str, Tensor]


def _of_classes(model: nn.Module, inputs: Inputs) -> Tensor:
    outputs: Any = model(**inputs)
    logits = outputs if isinstance(outputs, Tensor) else outputs.logits
    return nn.functional.cross_entropy(logits, torch.arange(BATCH) % CLASSES)


def _of_noise(model: nn.Module, inputs: Inputs) -> Tensor:
    """Latents of standard normal noise are their own target."""
    outputs: Any = model(**inputs)
    return nn.functional.mse_loss(outputs.sample, inputs["sample"])


@dataclass(frozen=True)
class Case:
    """A model, which of its modules PEFT's LoRA goes to, its head if it has one, its loss, and the bounds that hold."""

    what: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    head: str | None
    lora: tuple[str, ...]
    at_most: dict[str, float] = field(default_factory=dict)
    loss: Callable[[nn.Module, Inputs], Tensor] = field(default=_of_classes)


def _images() -> Inputs:
    return {"x": torch.randn(BATCH, 3, 224, 224)}


def _texts() -> Inputs:
    ids = torch.randint(1000, 2000, (BATCH, 128))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _vit(pool: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model("vit_base_patch16_224", global_pool=pool, num_classes=CLASSES)


def _bert() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(num_labels=CLASSES))


CASES = (
    Case(
        "ViT-B/16, class token",
        _vit("token"),
        _images,
        "head",
        ("qkv",),
        {"bytes_of_full": 0.005, "step_of_linear": 1.05},
    ),
    Case(
        "ViT-B/16, mean-pooled", _vit("avg"), _images, "head", ("qkv",), {"bytes_of_full": 0.08, "step_of_full": 0.42}
    ),
    Case(
        "ConvNeXt-B",
        lambda: timm.create_model("convnext_base", num_classes=CLASSES),
        _images,
        "head.fc",
        ("mlp.fc1", "mlp.fc2"),
    ),
    Case("ResNet-101", lambda: timm.create_model("resnet101", num_classes=CLASSES), _images, "fc", ("conv2",)),
    Case("BERT-base", _bert, _texts, "classifier", ("query", "value")),
    Case("U-Net", half_wide_unet, latents, None, ("to_q", "to_v"), loss=_of_noise),
)


def measure(rounds: int) -> Iterator[dict[str, Any]]:
    """One row a model: seconds of a step and bytes held for its backward, by method, and their ratios."""
    for case in CASES:
        torch.manual_seed(0)
        inputs = case.inputs()
        models = _models(case)
        losses = {method: partial(case.loss, model, inputs) for method, model in models.items()}
        held = {method: _held_bytes(loss) for method, loss in losses.items()}
        steps = {method: stepping(model, losses[method]) for method, model in models.items()}
        taken = in_turn(steps, 3 * rounds if case.at_most else rounds)
        row: dict[str, Any] = {"what": f"bypass, {case.what}"}
        for method in models:
            row |= {f"{method}_s": median(taken, method), f"{method}_mib": held[method] / 2**20}
            row[f"{method}_mib_at_most"] = None
        row |= {"bytes_of_full": held["bypass"] / held["full"], "bytes_of_lora": held["bypass"] / held["lora"]}
        row |= {f"step_of_{other}": ratio(taken, other, "bypass") for other in models if other != "bypass"}
        row |= {f"{name}_at_most": case.at_most.get(name) for name in row if "_of_" in name}
        yield row


def _models(case: Case) -> dict[str, nn.Module]:
    """The model in training by each method, in the order in which their steps are taken in a round: what is compared
    most closely stands side by side."""
    model, saved = case.build(), None if case.head is None else [case.head]
    config = peft.LoraConfig(r=8, target_modules=list(case.lora), modules_to_save=saved)
    models = {"full": copy.deepcopy(model), "lora": peft.get_peft_model(copy.deepcopy(model), config)}
    if case.head is not None:
        models["linear"] = copy.deepcopy(model).requires_grad_(False)
        models["linear"].get_submodule(case.head).requires_grad_(True)
    models["bypass"] = fxtune.apply(model, "res_bypass", example_inputs=case.inputs())
    return {method: model.train() for method, model in models.items()}


def _held_bytes(loss: Callable[[], Tensor]) -> int:
    loss()  # what is made once
    return held_bytes(loss)
