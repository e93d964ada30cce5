"""What makes a tuned model pass for the original: its class, its attributes, its signature."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterable
from typing import Any, NoReturn

from torch import nn

from fxtune.errors import UntunedCallError
from fxtune.tuned.guard import guarded
from fxtune.tuned.tuning import Tuning, state_of

_classes: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


def tuned_class(base: type[nn.Module], original: type[nn.Module]) -> type[nn.Module]:
    """A class that is both `base` and the original's, under the original's name.

    Libraries go by the class of a model: `isinstance` and `super()` in its methods, the forward signature found on
    the class (Trainer's labels), the class name (diffusers' pipelines, Trainer's loss). So all of these hold. What
    `base` and nn.Module define goes first; every other method of the original's class is guarded.
    """

    def body(namespace: dict[str, Any]) -> None:
        namespace["__module__"], namespace["__qualname__"] = original.__module__, original.__qualname__
        namespace["__doc__"] = original.__doc__
        namespace["forward"] = _with_signature(base, original)
        for name in dir(original):
            found = inspect.getattr_static(original, name)
            if isinstance(found, types.FunctionType) and not _taken(base, name, found):
                namespace[name] = guarded(name, found)

    if (base, original) not in _classes:
        _classes[base, original] = types.new_class(original.__name__, (base, original), {}, body)
    return _classes[base, original]


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
    try:
        value = getattr(state.twin, name)
    except AttributeError as error:
        raise AttributeError(f"{type(tuned).__name__!r} object has no attribute {name!r}") from error
    return _translated(tuned, state, name, value)


def _translated(tuned: nn.Module, state: Tuning, name: str, value: Any) -> Any:
    if isinstance(value, nn.Module):
        path = state.path_in_twin(value)
        return value if path is None else tuned.get_submodule(path)
    if isinstance(value, types.MethodType) and value.__self__ is state.twin:
        return types.MethodType(guarded(name, value.__func__), tuned)
    if isinstance(value, types.MethodType) and state.path_in_twin(value.__self__) is not None:
        return functools.partial(_refuse, name)
    if type(value) in (list, tuple) and _holds_code(value):
        return type(value)(_translated(tuned, state, name, item) for item in value)
    if type(value) is dict and _holds_code(value.values()):
        return {key: _translated(tuned, state, name, item) for key, item in value.items()}
    return value


def _holds_code(values: Iterable[Any]) -> bool:
    """Is there a module or a method in it? Otherwise the model's own list is returned, so that changes reach it."""
    code = (nn.Module, types.MethodType)
    return any(
        isinstance(value, code)
        or (type(value) in (list, tuple) and _holds_code(value))
        or (type(value) is dict and _holds_code(value.values()))
        for value in values
    )


def _refuse(name: str, *_: Any, **__: Any) -> NoReturn:
    raise UntunedCallError(
        f"`{name}` is bound to a part of the original model and would run it untuned.",
        fix="call the tuned model itself, or strip() for the original",
    )
