"""Text files as data have them: UTF-8, and lines that end in a line feed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fxtune.errors import DataError


def text_of(path: Path) -> str:
    """The text of a file.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None


def numbered(path: Path) -> Iterator[tuple[str, str]]:
    """Place and text of each line that is not blank.

    Parted at line feeds alone: a sentence may hold what Unicode calls a line separator.
    """
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if line.strip():
            yield f"{path}:{number}", line


def objects(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Place and content of each line of a file of JSON objects.

    Raises:
        DataError: a line is something else.
    """
    for where, line in numbered(path):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError("a line is no JSON", found=str(error), where=where) from None
        if not isinstance(entry, Mapping):
            raise DataError("a line is no JSON object", found=line[:80], where=where)
        yield where, entry


def not_utf8(path: Path, error: UnicodeDecodeError) -> DataError:
    """What is raised for such a file."""
    return DataError("a file of texts is not UTF-8", found=str(error), where=str(path), fix="save it as UTF-8")
