"""Splits of data as tensors, in batches that every method gets alike."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from fxtune.data import Split
from minilm import Batch, Sentences


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
        for start in range(0, len(order), size):
            group = order[start : start + size]
            yield {"x": self.images[group]}, self.labels[group]


Samples = Pictures | Sentences
"""Sentences come in batches about equally long, as in the demo: padding costs as much as text."""
