"""Splits of data as tensors, in batches that every method gets alike."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from fxtune.data import Split

Batch = tuple[dict[str, Tensor], Tensor]
"""Keyword inputs of the model, each with the batch first, and labels."""


class Pictures:
    """Images, N x 3 x size x size between -1 and 1, decoded once; nothing is augmented."""

    def __init__(self, split: Split, size: int) -> None:
        made = [F.to_dtype(F.to_image(s.picture()), scale=True) for s in split if s.picture is not None]
        self.images = F.resize(torch.stack(made), [size, size], antialias=True).as_subclass(Tensor) * 2 - 1
        self.labels = torch.tensor([s.label for s in split])

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, shuffle: random.Random | None = None) -> Iterator[Batch]:
        """All of them once, shuffled anew if asked for."""
        order = list(range(len(self)))
        if shuffle:
            shuffle.shuffle(order)
        for group in _groups(order, size):
            yield {"x": self.images[group]}, self.labels[group]


class Sentences:
    """Token ids, in batches of sentences about equally long: padding costs as much as text."""

    def __init__(self, split: Split, tokenizer: Any) -> None:
        self.ids: list[list[int]] = tokenizer([s.texts[0] for s in split], truncation=True, max_length=128)["input_ids"]
        self.labels = torch.tensor([s.label for s in split])
        self.padding: int = tokenizer.pad_token_id

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, shuffle: random.Random | None = None) -> Iterator[Batch]:
        """All of them once; shuffled anew among equally long ones, and batch by batch."""
        order = sorted(range(len(self)), key=lambda i: (len(self.ids[i]), shuffle.random() if shuffle else 0))
        groups = list(_groups(order, size))
        if shuffle:
            shuffle.shuffle(groups)
        for group in groups:
            length = max(len(self.ids[i]) for i in group)
            rows = [self.ids[i] + [self.padding] * (length - len(self.ids[i])) for i in group]
            mask = [[1] * len(self.ids[i]) + [0] * (length - len(self.ids[i])) for i in group]
            yield {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}, self.labels[group]


Samples = Pictures | Sentences


def _groups(order: Sequence[int], size: int) -> Iterator[list[int]]:
    return (list(order[start : start + size]) for start in range(0, len(order), size))
