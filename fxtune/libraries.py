"""Libraries that fxtune needs for one thing only, imported when that is asked for."""

from __future__ import annotations

import importlib
from types import ModuleType

from fxtune.errors import FxtuneError


def library(module: str, *, what: str, extra: str) -> ModuleType:
    """An optional library.

    Args:
        module: its name in Python.
        what: what needs it, as the beginning of a sentence.
        extra: the extra of fxtune that installs it.

    Raises:
        FxtuneError: it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise FxtuneError(f"{what} needs {module}", found=str(error), fix=f"pip install 'fxtune[{extra}]'") from error
