"""Timing two things in turn, so that whatever else the machine does falls on both."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
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


def paired(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> tuple[float, float, float]:
    """Median seconds of each, and the median over rounds of second / first; a first round is thrown away."""
    first(), second()
    pairs = [(seconds(first), seconds(second)) for _ in range(rounds)]
    ratio = statistics.median(b / a for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio
