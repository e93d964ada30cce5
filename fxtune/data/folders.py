"""Images in folders: a folder for each split and class, or VTAB-1K's lists, or captions beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fxtune.data import missing
from fxtune.data.lines import numbered, objects, text_of
from fxtune.data.pictures import from_file, images_in
from fxtune.data.samples import Data, Sample, Split
from fxtune.data.spec import Captions, Images, Vtab
from fxtune.errors import DataError
from fxtune.source import nearest

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Names that a split's folder or file may have, and the split's own."""


def two_of(split: str, one: str, other: str, where: object) -> DataError:
    """What is raised where a split is there twice, under names that mean the same."""
    return DataError(f"two are the split {split!r}", found=f"{one} and {other}", where=str(where), fix="keep one")


# ---- a folder for each class -----------------------------------------------------------------------------------------


def images(spec: Images) -> Data:
    """Splits and classes are folders: ``train/CLASS/IMAGE``."""
    layout = "train/CLASS/IMAGE, and val/ and test/ alike if there are such"
    root = missing.folder(spec.path, layout)
    folders: dict[str, Path] = {}
    for found in _folders(root):
        split = SPLITS.get(found.name)
        if split in folders:
            raise two_of(split, folders[split].name, found.name, root)
        if split is not None:
            folders[split] = found
    if not folders and spec.parts:
        folders = {"train": root}  # only classes, to be divided
    if not folders:
        raise DataError(
            f"the folder {spec.path!r} has no splits",
            found=f"the folders {', '.join(found.name for found in _folders(root)) or 'none'}",
            where=str(root.resolve()),
            fix=f"lay it out as {layout}; or, where its folders are classes, say how to divide them: "
            "`parts: {train: 0.8, test: 0.2}`",
        )
    # Others than the trained ones are told below; a set that is only tested on has its own.
    classes = tuple(found.name for found in _folders(folders.get("train") or next(iter(folders.values()))))
    order = sorted(folders, key=list(SPLITS.values()).index)
    splits = {name: _classed(folders[name], classes) for name in order}
    return Data(f"images at {spec.path}", "images", classes, splits)


def _classed(folder: Path, classes: tuple[str, ...]) -> Split:
    found: list[Sample] = []
    present: list[int] = []
    for place in _folders(folder):
        if place.name not in classes:
            near = nearest(place.name, classes, 1)
            raise DataError(
                f"the class {place.name!r} is not among those that are trained on",
                found=f"{len(classes):,} classes" + (f"; nearest: {near[0]!r}" if near else ""),
                where=str(place.resolve()),
                fix="rename the folder, or take it away",
            )
        samples = [from_file(path, classes.index(place.name)) for path in images_in(place)]
        if not samples:
            raise DataError("a class has no images", where=str(place.resolve()), fix="take the folder away")
        present.append(classes.index(place.name))
        found += samples
    return Split(tuple(found), tuple(present) if len(present) < len(classes) else None)


def _folders(root: Path) -> list[Path]:
    return sorted(found for found in root.iterdir() if found.is_dir() and not found.name.startswith("."))


# ---- VTAB-1K ---------------------------------------------------------------------------------------------------------

VTAB_SIZES = {"train800": 800, "val200": 200, "train800val200": 1000}
"""Lines of its lists; the test list has as many as the task has."""


def vtab(spec: Vtab) -> Data:
    """Lists of files and labels: ``images/0001.png 3``."""
    layout = "train800.txt, val200.txt, train800val200.txt and test.txt, each line a file and its label"
    root = missing.folder(spec.path, layout)
    lists = {"train": spec.train, "test": "test"} | ({"val": "val200"} if spec.train == "train800" else {})
    lines = {split: list(_listed(missing.file(root / f"{name}.txt", layout))) for split, name in lists.items()}
    for split, name in lists.items():
        if len(lines[split]) != VTAB_SIZES.get(name, len(lines[split])):
            raise DataError(
                f"{name}.txt is not the list of VTAB-1K",
                found=f"{len(lines[split]):,} lines instead of {VTAB_SIZES[name]:,}",
                where=str(root / f"{name}.txt"),
            )
    count = 1 + max(label for label, _, _ in lines["train"])
    splits = {split: Split(tuple(_samples(root, lines[split], count))) for split in sorted(lists, key=_order)}
    return Data(f"VTAB-1K at {spec.path}", "images", tuple(map(str, range(count))), splits)


def _listed(path: Path) -> Iterator[tuple[int, str, str]]:
    """Label, file and place of each line."""
    for where, line in numbered(path):
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdecimal():
            raise DataError("a line is no file and label", found=repr(line[:80]), where=where, fix="images/0001.png 3")
        yield int(label), name, where


def _samples(root: Path, lines: list[tuple[int, str, str]], count: int) -> Iterator[Sample]:
    for label, name, where in lines:
        if label >= count:
            raise DataError(
                "a label is out of range", found=f"{label}, of {count} classes 0 to {count - 1}", where=where
            )
        if not (root / name).is_file():
            raise DataError(f"there is no image {name!r}", found=missing.beside(root / name), where=where)
        yield from_file(root / name, label)


def _order(split: str) -> int:
    return ("train", "val", "test").index(split)


# ---- captions --------------------------------------------------------------------------------------------------------


def captions(spec: Captions) -> Data:
    """Images, and what each shows."""
    layout = "images with metadata.jsonl ({file_name, text}), or a .txt beside each; or name one `caption:` for all"
    root = missing.folder(spec.path, layout)
    metadata = root / "metadata.jsonl"
    if spec.caption is not None:
        samples = [from_file(path, texts=(spec.caption,)) for path in images_in(root)]
    elif metadata.is_file():
        samples = list(_described(metadata))
    else:
        samples = [from_file(path, texts=(_beside(path, layout),)) for path in images_in(root)]
    if not samples:
        raise DataError("a folder of captioned images has none", where=str(root.resolve()), fix=layout)
    return Data(f"captioned images at {spec.path}", "captions", (), {"train": Split(tuple(samples))})


def _described(metadata: Path) -> Iterator[Sample]:
    for where, entry in objects(metadata):
        if not {"file_name", "text"} <= set(entry):
            raise DataError(
                "a line is no caption",
                found=f"the keys {', '.join(entry)}",
                where=where,
                fix='{"file_name": ..., "text": ...}',
            )
        path = metadata.parent / str(entry["file_name"])
        if not path.is_file():
            raise DataError(f"there is no image {path.name!r}", found=missing.beside(path), where=where)
        yield from_file(path, texts=(str(entry["text"]),))


def _beside(image: Path, layout: str) -> str:
    text = image.with_suffix(".txt")
    if not text.is_file():
        raise DataError("an image has no caption", found=f"no {text.name}", where=str(image), fix=layout)
    return text_of(text).strip()
