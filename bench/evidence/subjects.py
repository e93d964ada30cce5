"""What is tuned: a backbone that has learned something, and data of another kind than it learned from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer

import fxtune
from evidence.learning import Plan, accuracy, learn
from evidence.samples import Pictures, Samples
from fxtune import names
from minilm import PACKAGE, SentenceClassifier, Sentences
from reviews import fetch_reviews

DATA = Path(__file__).resolve().parents[2] / ".data"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Subject:
    """A backbone and its data.

    Attributes:
        about: both, for people.
        model: makes the backbone with a fresh head drawn by the seed.
        head: the head's module path.
        splits: what is trained on, what chooses the learning rate, and what is told.
        plan: the same for every method.
        lora: the linear maps at which PEFT's LoRA is put: its own choice for such a model.
        methods: the rows of the table with the learning rates that `val` chooses from.
    """

    about: str
    model: Callable[[int], nn.Module]
    head: str
    splits: Mapping[str, Samples]
    plan: Plan
    lora: list[str]
    methods: Mapping[str, tuple[float, ...]]


Loader = Callable[[Path], Subject]
"""Makes a subject; the folder is where a backbone is kept that was trained for it."""

Maker = Callable[[int], Callable[[int], nn.Module]]
"""From the number of classes to a maker, by the seed, of the learned model with a fresh head."""

MOST = {
    "linear": (3e-3, 1e-2),
    "full": (1e-4, 3e-4),
    "PEFT LoRA": (1e-3, 3e-3),
    "lora": (1e-3, 3e-3),
    "tri_res": (1e-3, 3e-3),
    "res_bypass": (1e-3, 5e-3),
}
CONVOLUTIONAL = {("single_adapter_block" if name == "tri_res" else name): lrs for name, lrs in MOST.items()}


def minilm(_: Path) -> Subject:
    """The pretrained sentence encoder of `make demo`, on a fixed part of the film review sentences."""
    limit = {"train": 2000, "val": 400}
    data = fxtune.load_data({"source": "reviews", "path": str(fetch_reviews(DATA)), "limit": limit})
    tokenizer = AutoTokenizer.from_pretrained(names.folder(PACKAGE))
    splits = {name: Sentences(data.split(name), tokenizer) for name in SPLITS}

    def model(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        encoder = names.resolve(PACKAGE)
        return SentenceClassifier(encoder, encoder.config.hidden_size, classes=2)

    about = f"MiniLM (6 layers, 384 wide, its real weights), {data}"
    return Subject(about, model, "head", splits, Plan(epochs=3, batch=16), ["query", "value"], MOST)


def digits(folder: Path) -> Subject:
    """A ViT that learned the digits 0 to 4, on 5 to 9."""
    parts = {"train": 0.5, "val": 0.1, "test": 0.4}
    first, last = (
        fxtune.load_data({"source": "digits", "choose": list(some), "parts": parts}) for some in ("01234", "56789")
    )
    vit = timm.models.VisionTransformer
    sizes = {"img_size": 8, "patch_size": 2, "embed_dim": 64, "depth": 6, "num_heads": 4}
    told, model = _pretrained(folder / "digits", lambda n: vit(**sizes, num_classes=n), first, 8, Plan(80, 32))
    about = f"ViT (6 layers, 64 wide) that learned the digits 0 to 4 from scratch ({told}), then 5 to 9: {last}"
    return Subject(about, model(5), "head", _pictures(last, 8), Plan(20, 32), ["qkv"], MOST)


def sprites_vit(folder: Path) -> Subject:
    """A ViT on where sprites stand."""
    vit = timm.models.VisionTransformer
    sizes = {"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": 6, "num_heads": 4}
    return _sprites(folder / "sprites_vit", "ViT (6 layers, 64 wide)", "head", lambda n: vit(**sizes, num_classes=n),
                    ["qkv"], MOST)  # fmt: skip


def sprites_convnext(folder: Path) -> Subject:
    """A ConvNeXt on where sprites stand."""
    sizes = {"depths": (1, 1, 3, 1), "dims": (24, 48, 96, 192)}
    return _sprites(folder / "sprites_convnext", "ConvNeXt (6 Blocks, 24 to 192 wide)", "head.fc",
                    lambda n: timm.models.ConvNeXt(**sizes, num_classes=n), ["fc1", "fc2"], CONVOLUTIONAL)  # fmt: skip


SUBJECTS: dict[str, Loader] = {
    "minilm": minilm,
    "digits": digits,
    "sprites_vit": sprites_vit,
    "sprites_convnext": sprites_convnext,
}


def _sprites(file: Path, name: str, head: str, build: Callable[[int], nn.Module], lora: list[str],
             methods: Mapping[str, tuple[float, ...]]) -> Subject:  # fmt: skip
    """dSprites' location, VTAB's splits, by a model that learned to tell every second class apart.

    (Models of this size hardly learn orientation, VTAB's other label, from 8,000 sprites, and a ViT that learned no
    places learns them from VTAB's 800 by no method: full fine-tuning then knows the 800 by heart, and tells one of five
    of the others.)
    """
    every_second = [str(i) for i in range(0, 16, 2)]
    count = {"train": 12000, "val": 200, "test": 1000}
    others = {"source": "dsprites", "label": "location", "count": count, "seed": 1, "choose": every_second}
    told, model = _pretrained(file, build, fxtune.load_data(others), 64, Plan(10, 32))
    places = fxtune.load_data("dsprites/location")
    learned = f"that learned dSprites' location, of every second class ({told}) from scratch"
    about = f"{name} {learned}, then all of location: {places}"
    return Subject(about, model(len(places.classes)), head, _pictures(places, 64), Plan(20, 32), lora, methods)


def _pictures(data: fxtune.Data, size: int) -> dict[str, Samples]:
    return {name: Pictures(data.split(name), size) for name in SPLITS}


def _pretrained(
    file: Path, build: Callable[[int], nn.Module], data: fxtune.Data, size: int, plan: Plan
) -> tuple[str, Maker]:
    """What it learned, kept in a file, and the maker."""
    file = file.with_suffix(".safetensors")
    torch.manual_seed(0)
    learned = build(len(data.classes))
    if not file.is_file():
        splits = _pictures(data, size)
        for _ in learn(learned, splits["train"], plan, 1e-3, seed=0):
            pass
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(learned.state_dict(), file, {"told": f"{accuracy(learned, splits['test']):.1%} on held-out ones"})
    learned.load_state_dict(load_file(file))
    with safe_open(file, "pt") as opened:
        told = opened.metadata()["told"]

    def of_classes(count: int) -> Callable[[int], nn.Module]:
        def model(seed: int) -> nn.Module:
            torch.manual_seed(seed)
            fresh: Any = build(count)
            kept = {name: w for name, w in learned.state_dict().items() if w.shape == fresh.state_dict()[name].shape
                    and not name.startswith("head.fc") and name not in ("head.weight", "head.bias")}  # fmt: skip
            fresh.load_state_dict(kept, strict=False)
            return fresh

        return model

    return told, of_classes
