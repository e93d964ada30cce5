"""What the command line searches."""

from __future__ import annotations

from typing import Any

from fxtune.errors import InputError
from fxtune.names import factory
from fxtune.searching.search import Score
from fxtune.searching.supernet import Supernet
from fxtune.tuned import TunedModel


def asked_of(name: str) -> tuple[Supernet | TunedModel, Score]:
    """The supernet and the score function that the function `module:function` returns.

    Raises:
        FxtuneError: there is no such function (the closest names).
        InputError: it returns something else.
    """
    given: Any = factory(name)()
    if isinstance(given, tuple) and len(given) == 2:
        supernet, score = given
        if isinstance(supernet, Supernet | TunedModel) and callable(score):
            return supernet, score
    raise InputError(
        f"{name} gives nothing to search",
        found=f"({', '.join(type(item).__name__ for item in given)})" if isinstance(given, tuple) else repr(given),
        fix="let it return a pair: the trained supernet, and a function of a tuned model that returns its score",
    )
