"""Methods of the original's class on a tuned model: they run tuned, or not at all.

A method runs with the tuned model as self. While it does, a call of a submodule that does not go through a captured
graph is
watched: what stands outside every rewritten part may run, a Region or anything inside a rewritten Region may not (a
    Region's arguments are the graph's, not the module's, and calling what is inside it would leave its tuners out).
    Such a method is then captured as a graph of its own and tuned like forward.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves

from fxtune.errors import FxtuneError, UntunedCallError
from fxtune.tracing import Region
from fxtune.tuned.tuning import Tuning, state_of


class Watch:
    """What happens while a method of the original's class runs on a tuned model."""

    def __init__(self, tuned: nn.Module, state: Tuning) -> None:
        self.tuned = tuned
        self.in_graph = False
        self.tripped: UntunedCallError | None = None
        self.off_limits = off_limits(state)

    def before_call(self, module: nn.Module, _: Any) -> None:
        if _watch.get() is self and not self.in_graph and id(module) in self.off_limits:
            self.tripped = UntunedCallError(
                "A method of the model calls a captured module outside its graph.",
                found=f"a call of `{self.off_limits[id(module)] or type(module).__name__}`",
                fix="call the tuned model itself, or strip() for the original",
            )
            raise self.tripped


_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


def watched(tuned: nn.Module) -> bool:
    watch = _watch.get()
    return watch is not None and watch.tuned is tuned


@contextlib.contextmanager
def in_graph() -> Iterator[None]:
    """While on, the watched method is inside a captured graph, where everything may be called."""
    watch = _watch.get()
    if watch is None or watch.in_graph:
        yield
        return
    watch.in_graph = True
    try:
        yield
    finally:
        watch.in_graph = False


def run(state: Tuning, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a method by its graph, which is captured if these inputs are new."""
    if torch.compiler.is_compiling():
        return state.graph_for(method, args, kwargs)(*args, **kwargs)
    with in_graph():
        return state.graph_for(method, args, kwargs)(*args, **kwargs)


def off_limits(state: Tuning) -> dict[int, str]:
    """The modules that only a captured graph may call, by id: Regions, what is inside rewritten ones, and the twin's
    containers.
    """
    found: dict[int, str] = {}
    live: set[int] = set()
    for graph in state.every_graph():
        rewritten = [path for path, m in graph.named_modules() if isinstance(m, Region) and "tuners" in m._modules]
        for path, module in graph.named_modules():
            live.add(id(module))
            inside = any(not above or path.startswith(f"{above}.") for above in rewritten)
            if path and (inside or isinstance(module, Region)):
                found[id(module)] = path
    for path, module in state.twin.named_modules():
        if id(module) not in live:
            found[id(module)] = path
    return found


def guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a method of tuned models; signature, name and docstring are kept."""

    @functools.wraps(function)
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        state, compiling = state_of(self), torch.compiler.is_compiling()
        if state is None or (not compiling and watched(self)):
            return function(self, *args, **kwargs)
        if compiling or name in state.graphs:
            return run(state, name, args, kwargs)
        watch = Watch(self, state)
        with _undone_if_tripped(self, watch):
            try:
                result = _watching(watch, function, args, kwargs)
            except FxtuneError as error:  # of a call of the model, by a method that is not to blame
                raise _cannot_run(self, name, error.asked, error) from error
        if watch.tripped is None:
            return result
        if not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves((args, kwargs))):
            return _got(self, state, name, watch.tripped, given=bool(args or kwargs))
        try:
            return run(state, name, args, kwargs)
        except FxtuneError as error:
            found = f"{watch.tripped.found or watch.tripped.asked}; nor as a graph of its own: {error.asked}"
            raise _cannot_run(self, name, found, error) from error

    return method


def _cannot_run(tuned: nn.Module, method: str, found: str, error: FxtuneError) -> UntunedCallError:
    return UntunedCallError(
        f"`{method}` of {type(tuned).__name__} can't run tuned.",
        found=f"{found}: {error.found}" if error.found else found,
        where=error.where,
        fix="call the tuned model itself, or with flags that avoid this; or strip() for the original",
    )


def _watching(watch: Watch, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    token = _watch.set(watch)
    handle = register_module_forward_pre_hook(watch.before_call)
    try:
        before = _structure(watch.tuned)
        result = function(watch.tuned, *args, **kwargs)
        if isinstance(result, types.GeneratorType):
            result = iter(list(result))  # run it while it is watched
        if watch.tripped is None and _structure(watch.tuned) != before:
            watch.tripped = UntunedCallError(
                "A method of the model changes its modules, which the captured graph would not notice.",
                fix="change the model before apply; for another number of classes: apply(..., num_classes=...)",
            )
        return result
    except UntunedCallError:
        if watch.tripped is None:
            raise
        return None
    except (AttributeError, NotImplementedError, TypeError) as error:  # a Region is no instance of the original's class
        watch.tripped = UntunedCallError(
            f"`{type(watch.tuned).__name__}` has a method that needs more of its modules than a captured graph has.",
            found=f"{type(error).__name__}: {error}",
            fix="call the tuned model itself, or strip() for the original",
        )
        watch.tripped.__cause__ = error
        return None
    finally:
        handle.remove()
        _watch.reset(token)


def _got(tuned: nn.Module, state: Tuning, name: str, tripped: UntunedCallError, *, given: bool) -> nn.Module:
    """The module that a getter without arguments finds: looked for in the twin, returned from the tuned model."""
    if given or not name.startswith("get_"):
        raise tripped
    path = state.path_in_twin(getattr(state.twin, name)())
    if path is None:
        raise tripped
    return tuned.get_submodule(path)


def _structure(tuned: nn.Module) -> list[int]:
    return [id(module) for module in tuned.modules()]


@contextlib.contextmanager
def _undone_if_tripped(tuned: nn.Module, watch: Watch) -> Iterator[None]:
    """Put back what a method did to the model and to the random generator before it tripped."""
    attributes = dict(tuned.__dict__)
    children = [(module._modules, dict(module._modules)) for module in tuned.modules()]
    random = torch.get_rng_state()
    try:
        yield
    finally:
        if watch.tripped is not None:
            tuned.__dict__.clear()
            tuned.__dict__.update(attributes)
            for live, saved in children:
                if live != saved:
                    live.clear()
                    live.update(saved)
            torch.set_rng_state(random)
