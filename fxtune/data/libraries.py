"""Data that other libraries have: torchvision's classes, `datasets` on disk, scikit-learn's digits."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from fxtune.data import missing
from fxtune.data.folders import SPLITS, two_of
from fxtune.data.samples import Data, Kind, Sample, Split
from fxtune.data.spec import Digits, Saved, Vision
from fxtune.errors import DataError
from fxtune.libraries import library
from fxtune.source import nearest

if TYPE_CHECKING:
    from PIL.Image import Image


# ---- torchvision -----------------------------------------------------------------------------------------------------


def vision(spec: Vision) -> Data:
    """The class's own training, validation and test split, with its own labels."""
    datasets = library("torchvision.datasets", what="This source of data", extra="timm")
    cls = getattr(datasets, spec.dataset, None)
    if not inspect.isclass(cls):
        near = nearest(spec.dataset, datasets.__all__)
        raise DataError(
            f"torchvision has no dataset called {spec.dataset!r}",
            found=f"nearest: {', '.join(near) or 'none'}",
            fix="write the name of a class of torchvision.datasets",
        )
    made = _splits_made(cls, spec)
    classes = tuple(map(str, getattr(made["train"], "classes", ()))) or None
    labels = {split: _labels(dataset) for split, dataset in made.items()}
    count = len(classes) if classes else 1 + max(labels["train"])
    name = f"torchvision's {spec.dataset}"
    splits = {split: Split(tuple(_of_vision(name, split, made[split], labels[split], count))) for split in made}
    return Data(name, "images", classes or tuple(map(str, range(count))), splits)


def _splits_made(cls: Any, spec: Vision) -> dict[str, Any]:
    """Its splits. What a class may call them, only its documentation says: of the usual names, those that it takes."""
    made, refused = {}, ""
    for split, given in _divisions(cls, spec).items():
        try:
            made[split] = _made(cls, spec, given)
        except ValueError as error:
            refused = str(error)
    if "train" not in made:
        raise DataError(
            f"torchvision's {spec.dataset} has no split that fxtune knows",
            found=refused,
            fix="save it as a folder of images, or with the library `datasets`",
        )
    return made


def _divisions(cls: Any, spec: Vision) -> dict[str, dict[str, Any]]:
    """The splits, and the argument of the class that gives each."""
    known = inspect.signature(cls).parameters
    if "train" in known:
        return {"train": {"train": True}, "test": {"train": False}}
    if "split" not in known:
        if not spec.parts:
            raise DataError(
                f"torchvision's {spec.dataset} has no splits of its own",
                fix="say how to divide it: `parts: {train: 0.8, test: 0.2}`",
            )
        return {"train": {}}
    return {"train": {"split": "train"}, "val": {"split": "val"}, "test": {"split": "test"}}


def _made(cls: Any, spec: Vision, given: dict[str, Any]) -> Any:
    try:
        return (
            cls(spec.path, **given, download=False)
            if "download" in inspect.signature(cls).parameters
            else cls(spec.path, **given)
        )
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"torchvision's {spec.dataset} is not there",
            found=str(error).splitlines()[0],
            where=spec.path,
            fix=f"bring its files there as torchvision lays them out: torchvision.datasets.{spec.dataset}("
            f"{spec.path!r}, download=True) does it on a machine with a network",
        ) from None


def _labels(dataset: Any) -> list[int]:
    for name in ("targets", "labels", "_labels", "_samples"):
        found = getattr(dataset, name, None)
        if found is not None:
            return [int(label[1] if name == "_samples" else label) for label in found]
    return [int(dataset[i][1]) for i in range(len(dataset))]


def _of_vision(name: str, split: str, dataset: Any, labels: Sequence[int], count: int) -> Iterator[Sample]:
    for i, label in enumerate(labels):
        where = f"{name}, {split} {i}"
        _check_range(label, count, where)
        yield Sample(where, label, picture=partial(_first, dataset, i, where))


def _first(dataset: Any, index: int, where: str) -> Image:
    try:
        return dataset[index][0].convert("RGB")  # type: ignore[no-any-return]
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError("an image can't be decoded", found=f"{type(error).__name__}: {error}", where=where) from None


# ---- datasets --------------------------------------------------------------------------------------------------------


def saved(spec: Saved) -> Data:
    """What `save_to_disk` wrote: one split or several, with columns of images, texts and classes."""
    datasets = library("datasets", what="This source of data", extra="train")
    missing.folder(spec.path, "what `save_to_disk` of the library `datasets` writes")
    try:
        loaded = datasets.load_from_disk(spec.path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"the folder {spec.path!r} holds no saved dataset",
            found=str(error).splitlines()[0],
            where=spec.path,
            fix="write it with `save_to_disk`",
        ) from None
    tables: Mapping[str, Any] = loaded if isinstance(loaded, Mapping) else {"train": loaded}
    found: dict[str, str] = {}
    for name in tables:
        if (other := found.setdefault(SPLITS.get(name, name), name)) != name:
            raise two_of(SPLITS[name], other, name, spec.path)
    named = {split: tables[name] for split, name in found.items()}
    if "train" not in named:
        raise DataError(f"the dataset {spec.path!r} has no training split", found=f"the splits {', '.join(tables)}")
    for name in (*filter(None, [spec.image]), *spec.texts):
        _check_column(name, named["train"], spec)
    if not spec.image and not spec.texts:
        raise DataError(
            "which columns of a dataset to read is not said",
            found=f"the columns {', '.join(named['train'].column_names)}",
            where=spec.path,
            fix="name them: `image: img`, or `texts: [sentence]`",
        )
    kind: Kind = "captions" if spec.image and spec.texts else "images" if spec.image else "texts"
    classes = () if kind == "captions" else _class_names(named["train"], spec)
    if classes:
        named = {name: table for name, table in named.items() if name == "train" or _has_labels(table, spec)}
    splits = {name: Split(tuple(_of_saved(spec, name, table, classes))) for name, table in named.items()}
    return Data(f"the dataset at {spec.path}", kind, classes, splits)


def _class_names(table: Any, spec: Saved) -> tuple[str, ...]:
    _check_column(spec.label, table, spec)
    names, labels = getattr(table.features[spec.label], "names", None), table[spec.label]
    if not names and any(isinstance(label, str) for label in labels):
        return tuple(sorted(set(map(str, labels))))
    highest = max((label for label in labels if isinstance(label, int)), default=-1)
    return tuple(names) if names else tuple(map(str, range(1 + highest)))


def _has_labels(table: Any, spec: Saved) -> bool:
    """Whether any sample has one: the test sets of benchmarks have -1 throughout, and nothing can be tested on them."""
    return spec.label in table.column_names and any(label not in (-1, None) for label in table[spec.label])


def _check_column(name: str, table: Any, spec: Saved) -> None:
    if name not in table.column_names:
        near = nearest(name, table.column_names, 1)
        raise DataError(
            f"the dataset has no column {name!r}",
            found=f"the columns {', '.join(table.column_names)}" + (f"; nearest: {near[0]!r}" if near else ""),
            where=spec.path,
        )


def _of_saved(spec: Saved, split: str, table: Any, classes: tuple[str, ...]) -> Iterator[Sample]:
    texts = list(zip(*(table[name] for name in spec.texts), strict=True)) if spec.texts else [()] * len(table)
    numbers = {name: number for number, name in enumerate(classes)}
    labels = [numbers.get(label, label) for label in table[spec.label]] if classes else [None] * len(table)
    for i, (label, sentences) in enumerate(zip(labels, texts, strict=True)):
        where = f"{spec.path}, {split} {i}"
        if classes:
            _check_range(label, len(classes), where)
        picture = partial(_cell, table, i, spec.image, where) if spec.image else None
        yield Sample(where, label, tuple(map(str, sentences)), picture)


def _cell(table: Any, index: int, column: str, where: str) -> Image:
    try:
        return table[index][column].convert("RGB")  # type: ignore[no-any-return]
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError("an image can't be decoded", found=f"{type(error).__name__}: {error}", where=where) from None


def _check_range(label: Any, count: int, where: str) -> None:
    if not isinstance(label, int) or not 0 <= label < count:
        raise DataError(
            f"the label {label!r} is out of range",
            found=f"{count} classes, 0 to {count - 1}",
            where=where,
            fix="mend the label, or leave the sample out",
        )


# ---- scikit-learn ----------------------------------------------------------------------------------------------------


def digits(spec: Digits) -> Data:
    """1,797 handwritten digits of 8 x 8 pixels, 17 shades of grey."""
    found = library("sklearn.datasets", what="This source of data", extra="train").load_digits()
    samples = (
        Sample(f"digits {i}", int(label), picture=partial(_grey, rows))
        for i, (rows, label) in enumerate(zip(found.images.tolist(), found.target, strict=True))
    )
    return Data("digits", "images", tuple("0123456789"), {"train": Split(tuple(samples))})


def _grey(rows: list[list[float]]) -> Image:
    image = library("PIL.Image", what="An image", extra="train")
    made = image.new("L", (len(rows[0]), len(rows)))
    made.putdata([round(value * 255 / 16) for row in rows for value in row])
    return made.convert("RGB")  # type: ignore[no-any-return]
