"""Hooks on modules that the graph has dissolved: refused, because they would never run."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NoReturn

from fxtune.errors import UntunedCallError
from fxtune.tracing import Region
from fxtune.tuned.modes import leaf_calls
from fxtune.tuned.observing import HOOK_METHODS


def refuse_dead_hooks(graph: Region, called: Iterable[str]) -> None:
    """Let hooks be refused on each module that the original's forward called and the graph does not."""
    alive = {id(module) for _, _, module in leaf_calls(graph)}
    for path in called:
        module = graph.get_submodule(path)
        if isinstance(module, Region) or id(module) in alive:
            continue
        for method in HOOK_METHODS:
            module.__dict__[method] = functools.partial(_refuse, path)


def _refuse(path: str, *_: Any, **__: Any) -> NoReturn:
    raise UntunedCallError(
        f"A hook on `{path}` would never run.",
        found="the captured graph holds that module's operators but does not call the module",
        where=path,
        fix="register it on the nearest module above that is a Region, or before apply so that it is captured",
    )
