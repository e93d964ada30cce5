"""The paper's Table 1: a method in its own form and unbound, from equal weights and over equal batches."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evidence.comparing import Stored, write
from evidence.learning import accuracy, learn
from evidence.methods import tuned
from evidence.samples import Pictures, Samples
from evidence.subjects import SUBJECTS, Subject

METHODS = {"adapter": 1e-3, "prefix": 1e-2, "prompt": 1e-2}
DTYPES = ("float64", "float32")
EPOCHS = {"digits": 20, "minilm": 1}
"""By subject. Float64 takes twice the time, and every method is trained twice in it."""


@dataclass(frozen=True)
class Pair(Stored):
    """Both forms of one method, trained alike.

    Attributes:
        subject: on what.
        method: by what.
        dtype: of all weights. In float64 both forms compute the same to 1e-12; in float32 each rounds its own way, and
            training makes what is small large.
    """

    subject: str
    method: str
    dtype: str

    def file(self, folder: Path) -> Path:
        return folder / self.subject / "forms" / f"{self.method} {self.dtype}.json"

    def run(self, folder: Path) -> None:
        torch.set_num_threads(1)
        dtype = getattr(torch, self.dtype)
        subject = _steady(SUBJECTS[self.subject](folder), dtype)
        unbound = tuned(subject, self.method, seed=0, dtype=dtype)
        original = tuned(subject, self.method, seed=0, dtype=dtype, form="original")
        original.load_state_dict(unbound.state_dict())
        plan = replace(subject.plan, epochs=EPOCHS[self.subject])
        result: dict[str, Any] = asdict(self) | {"about": subject.about, "epochs": plan.epochs}
        for form, model in (("original", original), ("unbound", unbound)):
            losses = list(learn(model, subject.splits["train"], plan, METHODS[self.method], seed=0))
            result[form] = {"losses": losses, "test": accuracy(model, subject.splits["test"])}
        result["samples"] = len(subject.splits["test"])
        write(self.file(folder), result)


def _steady(subject: Subject, dtype: torch.dtype) -> Subject:
    """The same in another dtype and without dropout, whose noise would be another one in either form."""

    def model(seed: int) -> nn.Module:
        made = subject.model(seed).to(dtype)
        for module in made.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return made

    return replace(subject, model=model, splits={name: _cast(s, dtype) for name, s in subject.splits.items()})


def _cast(samples: Samples, dtype: torch.dtype) -> Samples:
    if isinstance(samples, Pictures):
        images: Tensor = samples.images
        samples.images = images.to(dtype)
    return samples
