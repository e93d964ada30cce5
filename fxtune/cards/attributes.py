"""Reading a model's attributes by dotted paths, without running anything but plain attribute access."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any


def read(model: object, path: str) -> Any:
    """The value at a dotted path of attributes, mapping keys and sequence indices; None where there is none.

    ``{path}`` inside a path stands for the text at that path: ``{default_cfg.first_conv}.in_channels``.
    """
    filled = fill(model, path)
    value: Any = model
    for name in filled.split(".") if filled else ():
        value = _step(value, name)
    return value if filled else None


def fill(model: object, path: str) -> str | None:
    """`path` with the text of the model's attribute in place of each ``{path}``; None where one holds no text."""
    for hole in re.findall(r"\{([^{}]*)\}", path):
        text = read(model, hole)
        if not (isinstance(text, str) and text):
            return None
        path = path.replace("{" + hole + "}", text)
    return path


def holds(model: object, expected: Mapping[str, object]) -> bool:
    """Whether every path holds what is expected there: a text is a glob over the text of a value that is not None."""
    for path, wanted in expected.items():
        value = read(model, path)
        fits = value is not None and fnmatchcase(str(value), wanted) if isinstance(wanted, str) else value == wanted
        if not fits:
            return False
    return True


def _step(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return value.get(name)
    if name.isdecimal() and isinstance(value, Sequence):
        return value[int(name)] if int(name) < len(value) else None
    return getattr(value, name, None)
