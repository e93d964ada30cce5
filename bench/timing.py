"""Timing two things in turn, so that whatever else the machine does falls on both."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def seconds(work: Callable[[], Any]) -> float:
    """How long one call takes.

    Garbage of earlier calls is collected before it, and what is alive then (the libraries' million objects) is set
    aside: a collection that happens to fall into a call would walk it all.
    """
    gc.collect()
    gc.freeze()
    start = time.perf_counter()
    work()
    taken = time.perf_counter() - start
    gc.unfreeze()
    return taken


def in_turn(works: Mapping[str, Callable[[], Any]], rounds: int) -> list[dict[str, float]]:
    """Seconds of each, round by round, by turns from first to last and back; a first round is thrown away."""
    for work in works.values():
        work()
    there, back = list(works), list(reversed(works))
    return [{name: seconds(works[name]) for name in (back if i % 2 else there)} for i in range(rounds)]


def ratio(taken: list[dict[str, float]], first: str, second: str) -> float:
    """The median over rounds of second / first."""
    return statistics.median(of_round[second] / of_round[first] for of_round in taken)


def paired(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> tuple[float, float, float]:
    """Median seconds of each, and the median over rounds of second / first; a first round is thrown away."""
    taken = in_turn({"first": first, "second": second}, rounds)
    return median(taken, "first"), median(taken, "second"), ratio(taken, "first", "second")


def median(taken: list[dict[str, float]], name: str) -> float:
    """The median seconds of one over the rounds."""
    return statistics.median(of_round[name] for of_round in taken)
