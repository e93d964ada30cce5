"""A training step and the bytes held for its backward: `res_bypass`, full fine-tuning, a linear probe and LoRA."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import peft
import timm
import torch
import transformers
from torch import Tensor, nn

import fxtune
from fxtune.testing import held_bytes
from stepping import stepping
from timing import in_turn, median, ratio

BATCH, CLASSES = 8, 100
METHODS = ("full", "lora", "linear", "bypass")
"""In the order in which their steps are taken in a round: what is compared most closely stands side by side."""


@dataclass(frozen=True)
class Case:
    """A model, which of its modules PEFT's LoRA goes to, its head, and the bounds that hold for it."""

    what: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    head: str
    lora: tuple[str, ...]
    at_most: dict[str, float] = field(default_factory=dict)


def _images() -> dict[str, Tensor]:
    return {"x": torch.randn(BATCH, 3, 224, 224)}


def _texts() -> dict[str, Tensor]:
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
)


def measure(rounds: int) -> Iterator[dict[str, Any]]:
    """One row a model: seconds of a step and bytes held for its backward, by method, and their ratios."""
    for case in CASES:
        torch.manual_seed(0)
        inputs = case.inputs()
        models = dict(zip(METHODS, _models(case), strict=True))
        held = {method: _held_bytes(model, inputs) for method, model in models.items()}
        steps = {method: _step(model, inputs) for method, model in models.items()}
        taken = in_turn(steps, 3 * rounds if case.at_most else rounds)
        row: dict[str, Any] = {"what": f"bypass, {case.what}"}
        for method in METHODS:
            row |= {f"{method}_s": median(taken, method), f"{method}_mib": held[method] / 2**20}
            row[f"{method}_mib_at_most"] = None
        row |= {"bytes_of_full": held["bypass"] / held["full"], "bytes_of_lora": held["bypass"] / held["lora"]}
        row |= {f"step_of_{other}": ratio(taken, other, "bypass") for other in METHODS[:-1]}
        row |= {f"{name}_at_most": case.at_most.get(name) for name in row if "_of_" in name}
        yield row


def _models(case: Case) -> Iterator[nn.Module]:
    """The model in training by each method."""
    model = case.build()
    yield copy.deepcopy(model).train()
    config = peft.LoraConfig(r=8, target_modules=list(case.lora), modules_to_save=[case.head])
    yield peft.get_peft_model(copy.deepcopy(model), config).train()
    linear = copy.deepcopy(model).requires_grad_(False)
    linear.get_submodule(case.head).requires_grad_(True)
    yield linear.train()
    yield fxtune.apply(model, "res_bypass", example_inputs=case.inputs()).train()


def _held_bytes(model: nn.Module, inputs: dict[str, Tensor]) -> int:
    loss = _loss(model)
    loss(inputs)  # what is made once
    return held_bytes(lambda: loss(inputs))


def _loss(model: nn.Module) -> Callable[[dict[str, Tensor]], Tensor]:
    labels = torch.arange(BATCH) % CLASSES

    def loss(inputs: dict[str, Tensor]) -> Tensor:
        outputs: Any = model(**inputs)
        logits = outputs if isinstance(outputs, Tensor) else outputs.logits
        return nn.functional.cross_entropy(logits, labels)

    return loss


def _step(model: nn.Module, inputs: dict[str, Tensor]) -> Callable[[], None]:
    loss = _loss(model)
    return stepping(model, lambda: loss(inputs))
