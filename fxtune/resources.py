"""Where the shipped rules, patterns and model cards lie.

They are files at the top of a source checkout (``rules/``, ``models/``); a wheel carries them inside the package.
"""

from __future__ import annotations

from pathlib import Path

from fxtune.errors import FxtuneError

_PACKAGE = Path(__file__).resolve().parent


def rules_dir() -> Path:
    """The folder of the shipped rule files (``*.yaml``)."""
    return _shipped("rules")


def patterns_dir() -> Path:
    """The folder of the shipped pattern files (``*.yaml``)."""
    return rules_dir() / "patterns"


def recipes_dir() -> Path:
    """The folder of the shipped recipes (``*.yaml``)."""
    return rules_dir() / "recipes"


def sweeps_dir() -> Path:
    """The folder of the shipped sweeps (``*.yaml``)."""
    return rules_dir() / "sweeps"


def models_dir() -> Path:
    """The folder of the shipped model cards (``*.yaml``)."""
    return _shipped("models")


def _shipped(name: str) -> Path:
    places = (_PACKAGE / "_shipped" / name, _PACKAGE.parent / name)
    for place in places:
        if place.is_dir():
            return place
    raise FxtuneError(
        f"The folder {name!r} that fxtune ships is missing",
        where=" and ".join(map(str, places)),
        fix="install fxtune again",
    )
