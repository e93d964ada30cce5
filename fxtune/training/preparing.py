"""From samples to tensors: images cut and normalised, sentences as token ids."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fxtune.data import Data, Sample, Split
from fxtune.errors import DataError
from fxtune.libraries import library
from fxtune.recipes import Images, Recipe
from fxtune.training.order import Key, seed_of

Tokenizer = Callable[..., Any]
"""As transformers has it: called with sentences, it gives a mapping of token ids and masks."""


@dataclass(frozen=True)
class Item:
    """One sample, ready to be put beside others.

    Attributes:
        value: what its `Preparation` puts together.
        label: its class.
        weight: 1, or 0 for a sample that does not count.
        unreadable: why it could not be decoded, and where; then it does not count.
    """

    value: Any
    label: int
    weight: float = 1.0
    unreadable: str | None = None


@dataclass(frozen=True)
class Batch:
    """Samples beside one another.

    Attributes:
        args: positional inputs of the model.
        kwargs: its keyword inputs.
        labels: B.
        weights: B, 1 for what counts and 0 for what only fills.
        unreadable: of each sample that could not be decoded, why and where.
    """

    args: tuple[Tensor, ...]
    kwargs: dict[str, Tensor]
    labels: Tensor
    weights: Tensor
    unreadable: tuple[str, ...] = ()

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """On another device, inputs that are no whole numbers in another dtype."""

        def moved(value: Tensor) -> Tensor:
            return value.to(device, dtype if value.is_floating_point() else None)

        return Batch(
            tuple(moved(value) for value in self.args),
            {name: moved(value) for name, value in self.kwargs.items()},
            self.labels.to(device),
            self.weights.to(device),
            self.unreadable,
        )


class Preparation(ABC):
    """What one kind of data needs on its way to the model."""

    @abstractmethod
    def value(self, sample: Sample, training: bool) -> Any:
        """What one sample contributes. `torch`'s generator is seeded for it.

        Raises:
            DataError: it can't be decoded.
        """

    @abstractmethod
    def stand_in(self) -> Any:
        """What stands for a sample that can't be decoded."""

    @abstractmethod
    def together(self, values: Sequence[Any]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Positional and keyword inputs of the model."""


class OfImages(Preparation):
    """B x 3 x size x size, normalised; in training a random part, mirrored one in two."""

    def __init__(self, spec: Images) -> None:
        v2 = library("torchvision.transforms.v2", what="Training on images", extra="train")
        last = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(spec.mean, spec.std)]
        size = [spec.size, spec.size]
        middle = [v2.Resize(round(spec.size * spec.border), antialias=True), v2.CenterCrop(size)]
        whole = [v2.Resize(size, antialias=True)]
        cut = {"random": [v2.RandomResizedCrop(size, antialias=True)], "center": middle, "none": whole}[spec.crop]
        flip = [v2.RandomHorizontalFlip()] if spec.flip else []
        self._training = v2.Compose([*cut, *flip, *last])
        self._testing = v2.Compose([*(whole if spec.crop == "none" else middle), *last])
        self._size = spec.size

    def value(self, sample: Sample, training: bool) -> Tensor:
        assert sample.picture is not None
        made: Tensor = (self._training if training else self._testing)(sample.picture())
        return made.as_subclass(Tensor)

    def stand_in(self) -> Tensor:
        return torch.zeros(3, self._size, self._size)

    def together(self, values: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        return (torch.stack(list(values)),), {}


class OfTexts(Preparation):
    """Token ids and masks, B x the longest sentence's tokens."""

    def __init__(self, tokenizer: Tokenizer, length: int, accepts: Sequence[str]) -> None:
        self._tokenizer, self._length, self._accepts = tokenizer, length, tuple(accepts)

    def value(self, sample: Sample, training: bool) -> tuple[str, ...]:
        return sample.texts

    def stand_in(self) -> tuple[str, ...]:
        raise AssertionError("a sentence needs no decoding")

    def together(self, values: Sequence[tuple[str, ...]]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        columns = [list(column) for column in zip(*values, strict=True)]
        made = self._tokenizer(*columns, padding=True, truncation=True, max_length=self._length, return_tensors="pt")
        return (), {name: made[name] for name in made if name in self._accepts}


class Prepared(Dataset[Item]):
    """A split as tensors; asked for by `Key`, so that a sample's augmentation hangs on its epoch and place alone.

    Args:
        split: the samples.
        preparation: what their kind needs.
        seed: of the augmentation.
        training: whether they are augmented.
    """

    def __init__(self, split: Split, preparation: Preparation, seed: int, training: bool) -> None:
        self.split, self.preparation, self.seed, self.training = split, preparation, seed, training

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Key) -> Item:
        sample = self.split[key.sample]
        label = -1 if sample.label is None else sample.label
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of("augmentation" if self.training else "test", self.seed, key.epoch, key.sample))
            try:
                return Item(self.preparation.value(sample, self.training), label, float(key.counts))
            except DataError as error:
                return Item(self.preparation.stand_in(), max(label, 0), 0.0, f"{error.where}: {error.found}")

    def together(self, items: Sequence[Item]) -> Batch:
        """The batch of some items, for `DataLoader`."""
        args, kwargs = self.preparation.together([item.value for item in items])
        return Batch(
            args,
            kwargs,
            torch.tensor([item.label for item in items]),
            torch.tensor([item.weight for item in items]),
            tuple(item.unreadable for item in items if item.unreadable is not None),
        )


def preparation(data: Data, recipe: Recipe, tokenizer: Tokenizer | None, accepts: Sequence[str]) -> Preparation:
    """What data of this kind need.

    Args:
        data: them.
        recipe: what is done to images and sentences.
        tokenizer: for sentences.
        accepts: the names of the model's inputs, for what the tokenizer gives beyond them.

    Raises:
        DataError: there is no tokenizer for sentences, or the data have no classes.
    """
    if data.kind == "images":
        return OfImages(recipe.images)
    if data.kind != "texts":
        raise DataError(
            f"{data.source} cannot be classified", found=f"{data.kind}, which have no classes", fix="take other data"
        )
    if tokenizer is None:
        raise DataError(
            "sentences need the model's tokenizer",
            found="none",
            where=data.source,
            fix="pass tokenizer=transformers.AutoTokenizer.from_pretrained(...), on the command line --tokenizer",
        )
    # A copy: a fast tokenizer keeps the padding that it was last called with.
    return OfTexts(copy.deepcopy(tokenizer), recipe.texts.length, accepts)
