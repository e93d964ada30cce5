"""Every method of the catalogue beside full fine-tuning, a linear probe and PEFT's: what it costs, what it learns.

Memory and time of a training step on ViT-S/16 at 224 pixels, 8 images in float32: bytes saved for backward, the most in
memory over two steps (weights, gradients and AdamW's state included), and a step beside one of full fine-tuning.
Accuracy on digits of five classes, by a small ViT that had learned the five others: 10 epochs, the better of two
learning rates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from evidence.learning import Plan, accuracy, learn
from evidence.methods import PEFTS, tuned
from evidence.subjects import Subject, digits
from fxtune.resources import rules_dir
from fxtune.testing import peak_bytes, saved_bytes, tensors
from stepping import stepping
from timing import in_turn, median, ratio

BATCH = 8
RATES = (1e-3, 5e-3)
PLAN = Plan(epochs=10, batch=32)
LEFT_OUT = ("noah",)
"""A supernet is no method by itself."""


def methods() -> list[str]:
    """Full and linear first, then the catalogue, then PEFT's."""
    shipped = [
        path.stem for path in sorted(rules_dir().glob("*.yaml")) if not path.stem.startswith(("single", "dual_p"))
    ]
    first = ["full", "linear"]
    return [*first, *(name for name in shipped if name not in (*first, *LEFT_OUT)), *PEFTS]


def measure(rounds: int) -> Iterator[dict[str, Any]]:
    """One row a method: memory and time of ViT-S/16 at 224 pixels, and the accuracy of a small ViT on unseen digits."""
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 3, 224, 224), torch.arange(BATCH)
    subject = Subject("", _vit, "head", {"val": _Few(images[:2], labels[:2])}, PLAN, ["qkv"], {})
    names = methods()
    models = {name: tuned(subject, name, seed=0).train() for name in names}
    taken = in_turn({name: _step(model, images, labels) for name, model in models.items()}, rounds)
    learned = digits(Path(__file__).resolve().parent / "results" / "evidence")
    for name, model in models.items():
        yield {
            "what": f"method: {name}",
            "accuracy": _learned(learned, name),
            "trained": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
            "saved_mib": saved_bytes(lambda model=model: _loss(model, images, labels), tensors(model)) / 2**20,
            "peak_mib": peak_bytes(lambda model=model: _twice(model, images, labels), tensors(model)) / 2**20,
            "step_s": median(taken, name),
            "step_of_full": ratio(taken, "full", name),
            "step_of_full_at_most": None,
        }


class _Few:
    """What `tuned` shows a model once."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def batches(self, size: int) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        yield {"x": self.images}, self.labels


def _vit(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("vit_small_patch16_224", num_classes=100)


def _learned(subject: Subject, method: str) -> float:
    """Accuracy on `test` with the learning rate that is best on `val`."""
    found = []
    for lr in RATES:
        model = tuned(subject, method, seed=0)
        for _ in learn(model, subject.splits["train"], PLAN, lr, seed=0):
            pass
        found.append((accuracy(model, subject.splits["val"]), accuracy(model, subject.splits["test"])))
    return max(found, key=lambda one: one[0])[1]


def _loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(images), labels)


def _twice(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Two steps from the first, which makes the optimizer's state."""
    step = _step(model, images, labels)
    step()
    step()


def _step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    return stepping(model, lambda: _loss(model, images, labels))
