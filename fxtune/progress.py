"""A bar while something long is computed: on a terminal, not in a pipe or a log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Iterable[Item], doing: str, total: int | None = None) -> Iterator[Item]:
    """The items, and on a terminal a bar (on stderr, gone afterwards) of how many are done.

    Args:
        items: what to go through.
        doing: what is done with them, shown beside the bar.
        total: how many there are, where they cannot tell.
    """
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, doing, total, console=console, transient=True, disable=not console.is_terminal)
