"""A bar while examples are computed: on a terminal, not in a pipe or a log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Sequence[Item], doing: str) -> Iterator[Item]:
    """The items, and on a terminal a bar (on stderr, gone afterwards) of how many are done."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, doing, console=console, transient=True, disable=not console.is_terminal)
