"""Hooks: a Region runs those of the module that it stands for; on dissolved modules they are refused."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NoReturn

from torch import nn

from fxtune.errors import UnsupportedModelError, UntunedCallError
from fxtune.tracing import Region
from fxtune.tuned.modes import leaf_calls
from fxtune.tuned.observing import HOOK_METHODS, RUN_HOOKS

_NEVER = "A hook on `{}` would never run."
_DISSOLVED = "the captured graph holds that module's operators but does not call the module"
_INSTEAD = "register it on the nearest module above that is a Region"


def share_hooks(graph: Region, twin: nn.Module) -> None:
    """Let the Regions below the root hold the hooks of their counterparts in the twin, those to come included."""
    counterparts = dict(twin.named_modules(remove_duplicate=False))
    for path, region in graph.named_modules(remove_duplicate=False):
        if path and isinstance(region, Region) and path in counterparts:
            for name in RUN_HOOKS:
                region.__dict__[name] = counterparts[path].__dict__[name]


def refuse_dead_hooks(graph: Region, called: Iterable[str]) -> None:
    """Let hooks be refused on each module that the original's forward called and the graph does not.

    Raises:
        UnsupportedModelError: such a module has a hook already.
    """
    alive = {id(module) for _, _, module in leaf_calls(graph)}
    modules = dict(graph.named_modules(remove_duplicate=False))
    for path in called:
        module = modules[path]
        if isinstance(module, Region) or id(module) in alive:
            continue
        if any(module.__dict__[name] for name in RUN_HOOKS):
            raise UnsupportedModelError(_NEVER.format(path), found=_DISSOLVED, where=path, fix=_INSTEAD)
        for method in HOOK_METHODS:
            module.__dict__[method] = functools.partial(_refuse, path)


def _refuse(path: str, *_: Any, **__: Any) -> NoReturn:
    raise UntunedCallError(_NEVER.format(path), found=_DISSOLVED, where=path, fix=_INSTEAD)
