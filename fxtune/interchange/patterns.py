"""PEFT's patterns over module paths, by which a config gives single modules another rank or alpha.

They are regular expressions, and a stranger's regular expression can run for years. Those are taken that cannot: single
characters, each once or in a run, with at most two runs. Groups and alternatives are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

Number = TypeVar("Number", int, float)

_MOST_RUNS = 2
_MOST_PATTERNS = 10_000
_ONE = r"(?:[\w/-]|\\[^\w\s]|\.|\\d|\[[\w-]+\])"
"""One character of a path: itself, escaped, any, a digit, or one of a set."""
_TAKEN = re.compile(rf"\^?(?:{_ONE}[+*]?)*\$?")
_RUN = re.compile(rf"{_ONE}[+*]")


def lookup(patterns: Mapping[str, Number], otherwise: Number) -> Callable[[str], Number]:
    """What PEFT takes for a module path: the number of the first pattern that fits its end, dot before it or all.

    Args:
        patterns: pattern -> number, in the config's order.
        otherwise: for paths that no pattern fits.

    Raises:
        ValueError: a pattern is not one of those that are taken, or they are too many.
    """
    if len(patterns) > _MOST_PATTERNS:
        raise ValueError(f"{len(patterns):,d} patterns; at most {_MOST_PATTERNS:,d} are read")
    known = [(_compiled(pattern), number) for pattern, number in patterns.items()]

    def number_of(path: str) -> Number:
        return next((number for pattern, number in known if pattern.match(path)), otherwise)

    return number_of


def pattern_of(path: str) -> str:
    """The pattern that fits this module path and no other."""
    return f"^{re.escape(path)}"


def _compiled(pattern: str) -> re.Pattern[str]:
    if not _TAKEN.fullmatch(pattern) or len(_RUN.findall(pattern)) > _MOST_RUNS:
        raise ValueError(
            f"the regular expression {pattern[:80]!r}; read are single characters, sets such as [0-9], and at most "
            f"{_MOST_RUNS} runs such as [0-9]+, for a stranger's expression could run for years"
        )
    try:
        return re.compile(rf"(.*\.)?({pattern})$")
    except re.error as error:
        raise ValueError(f"the regular expression {pattern[:80]!r}: {error}") from None
