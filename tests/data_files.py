"""A folder of images for the tests of data, and what was read of it."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from fxtune.data import Data, Sample

RED, BLUE = (250, 5, 5), (5, 5, 250)


def picture(path: Path, colour: tuple[int, int, int] = RED, size: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)
    return path


def colour(sample: Sample) -> tuple[int, int, int]:
    assert sample.picture is not None
    found = sample.picture().getpixel((0, 0))
    assert isinstance(found, tuple)
    return found[0], found[1], found[2]


def labels(data: Data, split: str = "train") -> list[int | None]:
    return [sample.label for sample in data.split(split)]


def birds(folder: Path) -> Path:
    """A folder of images, three splits of two classes: robins are red, jays blue."""
    for split, count in (("train", 3), ("valid", 1), ("test", 2)):
        for name, shade in (("robin", RED), ("jay", BLUE)):
            for i in range(count):
                picture(folder / "birds" / split / name / f"{i}.png", shade)
    return folder / "birds"
