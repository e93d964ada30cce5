"""The tokenizer of a model."""

from __future__ import annotations

from pathlib import Path

from fxtune import names
from fxtune.errors import DataError
from fxtune.libraries import library
from fxtune.training.preparing import Tokenizer


def tokenizer_of(name: str) -> Tokenizer:
    """The tokenizer in a folder on disk, or beside a model's weights.

    Args:
        name: a folder; or a model's name whose folder has one: ``transformers/PATH``, ``package/NAME``.

    Raises:
        DataError: there is none.
    """
    kind, _, rest = name.partition("/")
    place = names.folder(name) if kind == "package" else Path(rest if kind == "transformers" else name).expanduser()
    transformers = library("transformers", what="A tokenizer", extra="transformers")
    try:
        found: Tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DataError(
            f"there is no tokenizer at {name!r}",
            found=str(error).splitlines()[0],
            where=str(place),
            fix="name the folder where `tokenizer.save_pretrained` wrote one",
        ) from None
    return found
