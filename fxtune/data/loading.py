"""From what a caller hands over (a word, a path, a mapping) to data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fxtune import source
from fxtune.data import folders, libraries, sprites, tables
from fxtune.data.choosing import chosen, with_tests
from fxtune.data.samples import Data
from fxtune.data.spec import KINDS, Source
from fxtune.errors import DataError
from fxtune.source import Document, nearest

DataLike = str | Path | Mapping[str, Any] | Source

_READERS: dict[str, Callable[[Any], Data]] = {
    "images": folders.images,
    "vtab": folders.vtab,
    "captions": folders.captions,
    "table": tables.table,
    "reviews": tables.reviews,
    "torchvision": libraries.vision,
    "datasets": libraries.saved,
    "digits": libraries.digits,
    "dsprites": sprites.sprites,
}


def load_data(data: DataLike, changes: Mapping[str, Any] | None = None) -> Data:
    """The data that `data` names.

        >>> load_data("digits")
        >>> load_data("images/birds")  # the folder birds/, with train/CLASS/IMAGE in it
        >>> load_data({"source": "table", "path": "sst2", "texts": ["sentence"], "limit": {"train": 1500}})

    Args:
        data: a short form, ``SOURCE`` or ``SOURCE/PATH`` (for torchvision ``torchvision/CLASS``, for dSprites
            ``dsprites/location``); the path of a YAML file; or a mapping with what the file would say.
        changes: options that replace those of `data`: ``{"shots": 4, "seed": 1}``.

    Raises:
        DataError: they are not there, or not as they should be: where they are expected and how they are laid out.
        SourceError: the file or mapping says what no source takes.
    """
    spec = _spec(data, changes or {})
    found = chosen(_READERS[spec.source](spec), spec)  # type: ignore[attr-defined]
    for name, other in spec.tests.items():
        found = with_tests(found, name, load_data(other))
    return found


def _spec(data: DataLike, changes: Mapping[str, Any]) -> Source:
    document = _document(data)
    kind = document.data.get("source") if isinstance(document.data, Mapping) else None
    if kind not in KINDS:
        raise _unknown(kind, document.where(("source",)))
    # Of the one source, not of all: a misspelt key is then told with the keys that this source has.
    spec = document.validate(KINDS[kind])
    if not changes:
        return spec
    return source.from_data({**document.data, **changes}, f"{document.name}, changed").validate(KINDS[kind])


def _document(data: DataLike) -> Document:
    if isinstance(data, Source):
        return source.from_data(data.model_dump(mode="json", exclude_unset=True), f"the source {data.source}")  # type: ignore[attr-defined]
    if isinstance(data, Mapping):
        return source.from_data(data, "<data>")
    if isinstance(data, Path) and data.is_dir():
        raise _unknown(data.name, None, str(data))
    if isinstance(data, Path) or data.endswith((".yaml", ".yml")):
        return source.load(Path(data).expanduser())
    kind, _, rest = data.partition("/")
    if kind not in KINDS:
        raise _unknown(kind, None, data)
    short = KINDS[kind].short
    if rest and short is None:
        raise DataError(f"{kind} takes nothing behind its name", found=repr(data), fix=f"write {kind!r}")
    return source.from_data({"source": kind, **({short: rest} if rest and short else {})}, repr(data))


def _unknown(kind: object, where: str | None, place: str = "") -> DataError:
    near = nearest(str(kind), KINDS, 1)
    return DataError(
        f"there is no source of data called {kind!r}",
        found=f"the sources {', '.join(KINDS)}" + (f"; nearest: {near[0]!r}" if near else ""),
        where=where,
        fix="write SOURCE/PATH, as in images/birds, or a YAML file with `source:` in it"
        + (f"; {place} is a folder: do you mean images/{place}?" if place and Path(place).is_dir() else ""),
    )
