"""What every source of data gives: samples in splits, and the classes that their labels count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from fxtune.errors import DataError
from fxtune.source import nearest

if TYPE_CHECKING:
    from PIL.Image import Image

Kind = Literal["images", "texts", "captions"]
"""Pictures with a class, one or two sentences with a class, or pictures with a caption."""


@dataclass(frozen=True)
class Sample:
    """One sample, not yet decoded.

    Attributes:
        name: where it comes from: a file, a file and its line, or a number in a set.
        label: its class, counted from 0; None for a caption.
        texts: its sentences, or its caption.
        picture: decodes its image, as RGB; None for text. It raises `DataError` where the file can't be decoded.
    """

    name: str
    label: int | None = None
    texts: tuple[str, ...] = ()
    picture: Callable[[], Image] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Split(Sequence[Sample]):
    """Samples in a fixed order.

    Attributes:
        samples: them.
        among: the classes that an answer is chosen from, where the split stands for fewer than the data has
            (a test set of 200 of ImageNet's 1,000 classes); None for all of them.
    """

    samples: tuple[Sample, ...]
    among: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        return self.samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)


@dataclass(frozen=True)
class Data:
    """Data as they are trained and tested on.

    Attributes:
        source: what they are, for people: ``images at birds/``.
        kind: what a sample has.
        classes: the names of the classes, in the order of the labels; empty for captions.
        splits: by name; ``train`` is trained on, ``val`` chooses, ``test`` and all others are tested on.
    """

    source: str
    kind: Kind
    classes: tuple[str, ...]
    splits: Mapping[str, Split]

    def split(self, name: str) -> Split:
        """The split called `name`.

        Raises:
            DataError: there is none, or it is empty.
        """
        found = self.splits.get(name)
        if found is None:
            near = nearest(name, self.splits, 1)
            raise DataError(
                f"{self.source} has no split called {name!r}",
                found=f"the splits {', '.join(self.splits)}" + (f"; nearest: {near[0]!r}" if near else ""),
                fix="name one of them, or divide the data with `parts: {train: 0.8, test: 0.2}`",
            )
        if not found:
            raise DataError(f"the split {name!r} of {self.source} is empty", fix="take another split, or more data")
        return found

    def with_splits(self, splits: Mapping[str, Split]) -> Data:
        """The same with other splits."""
        return replace(self, splits=dict(splits))

    def __str__(self) -> str:
        sizes = ", ".join(f"{len(split):,} {name}" for name, split in self.splits.items())
        told = f", {len(self.classes):,} classes" if self.classes else ""
        return f"{self.source}: {sizes}{told}"
