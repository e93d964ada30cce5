"""What is said where data are not where they were said to be."""

from __future__ import annotations

from pathlib import Path

from fxtune.errors import DataError
from fxtune.source import nearest


def folder(path: str, layout: str) -> Path:
    """The folder at `path`.

    Args:
        path: as the user gave it.
        layout: what the folder should hold, in a few words.

    Raises:
        DataError: there is none; where it is expected, what lies there instead, and how it is laid out.
    """
    place = Path(path).expanduser()
    if not place.is_dir():
        raise DataError(
            f"there is no folder {path!r} with data",
            found="a file" if place.exists() else beside(place),
            where=str(place.resolve()),
            fix=f"put the data there: {layout}",
        )
    return place


def file(place: Path, layout: str) -> Path:
    """The file at `place`.

    Raises:
        DataError: there is none.
    """
    if not place.is_file():
        raise DataError(
            f"there is no file {place.name!r}",
            found=beside(place),
            where=str(place.resolve()),
            fix=f"put the data there: {layout}",
        )
    return place


def beside(place: Path) -> str:
    """What lies where `place` should lie, the nearest names first."""
    parent = place.parent
    if not parent.is_dir():
        return f"nor is there a folder {str(parent)!r}"
    names = sorted(found.name for found in parent.iterdir())
    if not names:
        return f"the folder {str(parent)!r} is empty"
    near = nearest(place.name, names) or names[:5]
    return f"{len(names):,} other names beside it: {', '.join(near)}" + (", ..." if len(names) > len(near) else "")
