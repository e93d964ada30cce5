"""Sentences with labels, in CSV or JSON lines; and the film reviews."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fxtune.data import missing
from fxtune.data.folders import SPLITS, two_of
from fxtune.data.lines import not_utf8, objects
from fxtune.data.samples import Data, Sample, Split
from fxtune.data.spec import Reviews, Table
from fxtune.errors import DataError
from fxtune.source import nearest

Row = tuple[str, Mapping[str, Any]]
"""Where a row stands, and what it has by column."""


def table(spec: Table) -> Data:
    """A file for each split, or one for all."""
    rows = {split: list(_rows(path)) for split, path in _files(spec).items()}
    found = {split: [_read(spec, *row) for row in some] for split, some in rows.items()}
    classes = tuple(spec.classes) or tuple(sorted({label for _, label, _ in found["train"]}, key=_numbers_first))
    splits = {split: Split(tuple(_samples(classes, some))) for split, some in found.items()}
    return Data(f"texts at {spec.path}", "texts", classes, splits)


def _files(spec: Table) -> dict[str, Path]:
    place = Path(spec.path).expanduser()
    layout = "train.csv or train.jsonl, and val and test alike if there are such"
    if place.is_file():
        _reader(place)
        return {"train": place}
    root = missing.folder(spec.path, layout)
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        split = SPLITS.get(path.stem)
        if split is None or path.suffix not in _READERS:
            continue
        if split in found:
            raise two_of(split, found[split].name, path.name, root.resolve())
        found[split] = path
    if "train" not in found:
        missing.file(root / "train.csv", layout)
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _rows(path: Path) -> Iterator[Row]:
    try:
        yield from _reader(path)(path)
    except UnicodeDecodeError as error:
        raise not_utf8(path, error) from None


def _csv(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                where = f"{path}:{reader.line_num}"
                if None in row:
                    raise DataError(
                        "a row has more columns than the header",
                        found=", ".join(map(repr, row[None])),
                        where=where,
                        fix='put texts with commas between quotes: "I like it, really",good',
                    )
                yield where, {name: value for name, value in row.items() if value is not None}
        except csv.Error as error:
            raise DataError("a line is no CSV", found=str(error), where=f"{path}:{reader.line_num}") from None


_READERS = {".csv": _csv, ".jsonl": objects}


def _reader(path: Path) -> Any:
    if path.suffix not in _READERS:
        raise DataError(
            "a table of this form cannot be read",
            found=path.name,
            where=str(path),
            fix=f"write it as {' or '.join(_READERS)}",
        )
    return _READERS[path.suffix]


def _read(spec: Table, where: str, row: Mapping[str, Any]) -> tuple[tuple[str, ...], str, str]:
    """Sentences, label and place of a row."""
    for column in (*spec.texts, spec.label):
        if column not in row:
            near = nearest(column, list(map(str, row)), 1)
            raise DataError(
                f"a row has no column {column!r}",
                found=f"the columns {', '.join(map(str, row))}" + (f"; nearest: {near[0]!r}" if near else ""),
                where=where,
                fix="name the columns in a file of data: `{source: table, path: ..., texts: [sentence], label: class}`",
            )
        if row[column] is None or not str(row[column]).strip():
            raise DataError(
                f"a row has nothing in the column {column!r}", found=repr(row[column]), where=where, fix="mend the row"
            )
    return tuple(str(row[column]) for column in spec.texts), str(row[spec.label]), where


def _samples(classes: tuple[str, ...], rows: list[tuple[tuple[str, ...], str, str]]) -> Iterator[Sample]:
    numbers = {name: number for number, name in enumerate(classes)}
    for texts, label, where in rows:
        if label not in numbers:
            near = nearest(label, classes, 1)
            raise DataError(
                f"the label {label!r} is out of range",
                found=f"{len(classes):,} classes: {', '.join(classes[:10])}{', ...' if len(classes) > 10 else ''}"
                + (f"; nearest: {near[0]!r}" if near else ""),
                where=where,
                fix="mend the label, or name all classes: `classes: [...]`",
            )
        yield Sample(where, numbers[label], texts)


def _numbers_first(label: str) -> tuple[int, int, str]:
    """0, 2, 10 in this order, and names behind them."""
    return (0, int(label), "") if label.lstrip("-").isdecimal() else (1, 0, label)


# ---- film reviews ----------------------------------------------------------------------------------------------------

SENTENCES = "movieReviewSnippets_GroundTruth.txt"


def reviews(spec: Reviews) -> Data:
    """10,605 sentences of film reviews and their mean rating (Hutto and Gilbert, VADER, 2014): bad or good.

    Repeated and neutral ones are left out, and the rest are shuffled, alike everywhere.
    """
    layout = (
        f"{SENTENCES}, from hutto_ICWSM_2014.tar.gz in vaderSentiment's source distribution (`make demo` brings it)"
    )
    path = missing.file(missing.folder(spec.path, layout) / SENTENCES, layout)
    found: dict[str, Sample] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        _, rating, sentence = line.split("\t")
        if float(rating) != 0:
            found.setdefault(sentence, Sample(f"{path}:{number}", int(float(rating) > 0), (sentence,)))
    shuffled = list(found.values())
    random.Random(0).shuffle(shuffled)
    return Data("film reviews", "texts", ("bad", "good"), {"train": Split(tuple(shuffled))})
