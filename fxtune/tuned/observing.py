"""Capture of a twin, with a note of every module that its forward called."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from fxtune.tracing import Region, capture
from fxtune.tuned.recapture import keep, kept_for

RUN_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
"""The dicts of a module's hooks that run when it is called; they are kept out of a capture."""

HOOK_METHODS = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
)
LOCKS = ("train", *HOOK_METHODS)
"""Attributes that a tuned model puts on modules of its twin, to keep a mode or to refuse hooks; off during a capture.
"""


def observed_capture(
    twin: nn.Module, example_inputs: Any = None, *, method: str = "forward"
) -> tuple[Region, frozenset[str]]:
    """Capture one method of the twin.

    Hooks don't run and are no part of the graph: the modules that the graph calls run them.

    Args:
        example_inputs: as for `fxtune.capture`.
        method: the method to capture in the place of forward.

    Returns:
        The graph, and the paths of the modules that were called, those included that the graph dissolves.
    """
    kept = kept_for(twin, example_inputs) if method == "forward" else None
    if kept is not None:
        return kept
    with (
        unlocked(twin),
        _without_hooks(twin),
        _as_forward(twin, method),
        _noting_calls(twin) as called,
    ):
        graph = capture(twin, example_inputs)
    if method == "forward":
        keep(twin, graph, frozenset(called))
    return graph, frozenset(called)


@contextlib.contextmanager
def unlocked(twin: nn.Module) -> Iterator[None]:
    """While on, the twin's modules are without what a tuned model has put on them."""
    locks = [(module, name) for module in twin.modules() for name in LOCKS if name in module.__dict__]
    taken = [(module, name, module.__dict__.pop(name)) for module, name in locks]
    try:
        yield
    finally:
        for module, name, lock in taken:
            module.__dict__[name] = lock


@contextlib.contextmanager
def _without_hooks(twin: nn.Module) -> Iterator[None]:
    hooks = [(module.__dict__, name, module.__dict__[name]) for module in twin.modules() for name in RUN_HOOKS]
    for attributes, name, _ in hooks:
        attributes[name] = OrderedDict()
    try:
        yield
    finally:
        for attributes, name, kept in hooks:
            attributes[name] = kept


@contextlib.contextmanager
def _as_forward(twin: nn.Module, method: str) -> Iterator[None]:
    if method == "forward":
        yield
        return
    before = twin.__dict__.get("forward")
    twin.__dict__["forward"] = getattr(twin, method)
    try:
        yield
    finally:
        del twin.__dict__["forward"]
        if before is not None:
            twin.__dict__["forward"] = before


@contextlib.contextmanager
def _noting_calls(twin: nn.Module) -> Iterator[set[str]]:
    """A module is known by its __dict__, which the exporter's proxies of it share."""
    paths: dict[int, list[str]] = {}
    for path, module in twin.named_modules(remove_duplicate=False):
        paths.setdefault(id(module.__dict__), []).append(path)
    called: set[str] = set()
    handle = register_module_forward_pre_hook(lambda module, _: called.update(paths.get(id(module.__dict__), ())))
    try:
        yield called
    finally:
        handle.remove()
