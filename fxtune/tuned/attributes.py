"""What makes a tuned model pass for the original: its class, its attributes, its signature."""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any

from torch import nn

from fxtune.errors import UntunedCallError
from fxtune.tuned.guard import guarded
from fxtune.tuned.tuning import state_of


@functools.cache
def tuned_class(base: type[nn.Module], original: type[nn.Module]) -> type[nn.Module]:
    """A class that is both `base` and the original's, under the original's name.

    Libraries go by the class of a model: `isinstance` and `super()` in its methods, the forward signature found on the class
    (Trainer's labels), the class name (diffusers' pipelines, Trainer's loss). So all of these hold. What `base` and nn.Module
    define goes first; every other method of the original's class is guarded.
    """

    def body(namespace: dict[str, Any]) -> None:
        namespace["__module__"], namespace["__qualname__"] = original.__module__, original.__qualname__
        namespace["__doc__"] = original.__doc__
        namespace["forward"] = _with_signature(base, original)
        for name in dir(original):
            found = inspect.getattr_static(original, name)
            if isinstance(found, types.FunctionType) and not _taken(base, name, found):
                namespace[name] = guarded(name, found)

    return types.new_class(original.__name__, (base, original), {}, body)


def _taken(base: type, name: str, function: types.FunctionType) -> bool:
    """Does the name belong to TunedModel, to nn.Module or to Python?"""
    return (
        name.startswith("__")
        or any(name in vars(cls) for cls in base.__mro__ if cls not in nn.Module.__mro__)
        or vars(nn.Module).get(name) is function
        or name == "forward"
    )


def _with_signature(base: type[nn.Module], original: type[nn.Module]) -> Any:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return base.forward(self, *args, **kwargs)

    forward.__signature__ = inspect.signature(original.forward)  # type: ignore[attr-defined]
    forward.__doc__ = original.forward.__doc__
    return forward


def attribute_of_original(tuned: nn.Module, name: str) -> Any:
    """A plain attribute, as the twin has it; modules and methods in it are the tuned model's.

    Raises:
        AttributeError: the original has none of that name, or its property failed on the tuned model.
    """
    state = state_of(tuned)
    if state is None or inspect.getattr_static(type(tuned), name, None) is not None:
        raise AttributeError(f"`{name}` of {type(tuned).__name__!r} can't be had from a tuned model")
    twin = state.twin
    try:
        value = getattr(twin, name)
    except AttributeError as error:
        raise AttributeError(f"{type(twin).__name__!r} object has no attribute {name!r}") from error
    return _translated(tuned, twin, name, value)


def _translated(tuned: nn.Module, twin: nn.Module, name: str, value: Any) -> Any:
    if isinstance(value, nn.Module):
        return _counterpart(tuned, twin, value)
    if isinstance(value, types.MethodType) and value.__self__ is twin:
        return types.MethodType(guarded(name, value.__func__), tuned)  # type: ignore[arg-type]
    if isinstance(value, types.MethodType) and _path(twin, value.__self__) is not None:
        return functools.partial(_refuse, name)
    if type(value) in (list, tuple):
        return type(value)(_translated(tuned, twin, name, item) for item in value) if _holds_code(value) else value
    if type(value) is dict and _holds_code(list(value.values())):
        return {key: _translated(tuned, twin, name, item) for key, item in value.items()}
    return value


def _holds_code(values: Any) -> bool:
    """Is there a module or a method in it? Otherwise the very list of the model is returned, so that changes reach it."""
    nested = (list, tuple, dict)
    return any(isinstance(v, (nn.Module, types.MethodType)) or (type(v) in nested and _holds_code(_items(v))) for v in values)


def _items(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else list(value)


def _counterpart(tuned: nn.Module, twin: nn.Module, module: nn.Module) -> nn.Module:
    path = _path(twin, module)
    return module if path is None else tuned.get_submodule(path)


def _path(twin: nn.Module, module: Any) -> str | None:
    return next((path for path, candidate in twin.named_modules() if candidate is module), None)


def _refuse(name: str, *_: Any, **__: Any) -> Any:
    raise UntunedCallError(
        f"`{name}` is bound to a part of the original model and would run it untuned.",
        fix="call the tuned model itself, or strip() for the original",
    )
