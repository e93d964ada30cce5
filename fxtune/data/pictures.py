"""Image files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fxtune.data.samples import Sample
from fxtune.errors import DataError
from fxtune.libraries import library

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""How the names of image files end."""


def images_in(folder: Path) -> Iterator[Path]:
    """The image files right in a folder, by name; hidden files are none."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file():
            yield path


def from_file(path: Path, label: int | None = None, texts: tuple[str, ...] = ()) -> Sample:
    """The sample of one image file, which is opened when it is wanted."""
    return Sample(str(path), label, texts, partial(opened, path))


def opened(path: Path) -> Image:
    """The image of a file, as RGB.

    Raises:
        DataError: it can't be decoded.
    """
    image = library("PIL.Image", what="An image", extra="train")
    try:
        with image.open(path) as found:
            decoded: Image = _of_eight_bits(found).convert("RGB")
            return decoded
    except (OSError, SyntaxError, ValueError, image.DecompressionBombError) as error:
        raise DataError(
            "an image can't be decoded", found=f"{type(error).__name__}: {error}", where=str(path)
        ) from None


def _of_eight_bits(image: Image) -> Image:
    """Grey of 16 bits from 0 to 255: Pillow would cut off all above, and leave a white image."""
    if not image.mode.startswith("I;16") and image.mode != "I":
        return image
    return image.convert("I").point(lambda value: value / 257).convert("L")
