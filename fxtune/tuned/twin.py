"""The structural twin: a copy of a model's module objects over the very same weights.

Everything that `apply` does happens on a twin, so the user's model is never touched. The twin's parameters and
buffers are
aliases: tensor objects of their own over the same storage. Giving an alias a storage of its own (``alias.data =
    copy``) is therefore invisible to the original and seen by everyone who holds the alias: the twin, every captured
    graph, every leaf.
"""

from __future__ import annotations

import copy
import functools
import types
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fxtune.errors import UnsupportedModelError
from fxtune.wrapped import aliased, is_wrapped

_HOOK_DICTS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def structural_twin(model: nn.Module) -> nn.Module:
    """Copy the module objects of `model`, not its weights.

    Parameters come as aliases that don't require grad, buffers as aliases, other tensor attributes as they are. Tied
    weights stay tied, hooks and mode flags are kept. `model` may be on any device, the meta device included.

    Raises:
        UnsupportedModelError: a weight is a tensor subclass (sharded, lazy) that is no wrapper of other tensors, or
            the module objects can't be copied.
    """
    memo: dict[int, Any] = {}
    inside = {id(module) for module in model.modules()}
    for path, module in model.named_modules():
        _refuse_script(path, module)
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in memo:
                memo[id(parameter)] = alias_parameter(parameter, f"{path}.{name}".lstrip("."))
        for name, buffer in module._buffers.items():
            if buffer is not None and id(buffer) not in memo:
                memo[id(buffer)] = alias_buffer(buffer, f"{path}.{name}".lstrip("."))
        for value in module.__dict__.values():
            if type(value) in (dict, OrderedDict) and not value:
                # A module has a dozen empty dicts of hooks: deepcopy would spend most of its time on them.
                memo[id(value)] = type(value)()
        for hook in _hooks(module):
            if not _refers_to(hook, inside):
                memo[id(hook)] = hook  # a hook's state belongs to the user: the twin calls the same object
    try:
        with _TensorsAsTheyAre():
            twin: nn.Module = copy.deepcopy(model, memo)
    except (TypeError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"Could not copy the module objects of {type(model).__name__}.",
            found=str(error),
            fix="remove attributes that can't be copied (locks, open files, graph tensors) before apply",
        ) from error
    return twin


def alias_parameter(parameter: nn.Parameter, name: str) -> nn.Parameter:
    """Another Parameter over the same storage, frozen, with the attributes that `parameter` carries."""
    if type(parameter) is not nn.Parameter and not is_wrapped(parameter):
        raise _cannot_alias(name, parameter)
    alias = nn.Parameter(aliased(parameter), requires_grad=False)
    alias.__dict__.update(parameter.__dict__)
    return alias


def alias_buffer(buffer: torch.Tensor, name: str) -> torch.Tensor:
    """Another tensor over the same storage, with the attributes that `buffer` carries."""
    if type(buffer) not in (torch.Tensor, nn.Buffer) and not is_wrapped(buffer):
        raise _cannot_alias(name, buffer)
    alias = aliased(buffer)
    alias.__dict__.update(buffer.__dict__)
    return alias


class _TensorsAsTheyAre(TorchFunctionMode):
    """While on, deepcopy takes a tensor as it is instead of cloning it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__deepcopy__:
            return args[0]
        return func(*args, **(kwargs or {}))


def _hooks(module: nn.Module) -> Iterator[Any]:
    for name in _HOOK_DICTS:
        yield from getattr(module, name, {}).values()


def _refers_to(hook: Any, inside: set[int]) -> bool:
    """Is the hook bound to a module of the model itself? Then its copy must be bound to the module's copy."""
    if isinstance(hook, types.MethodType):
        return id(hook.__self__) in inside
    if isinstance(hook, functools.partial):
        return any(id(value) in inside or _refers_to(value, inside) for value in (hook.func, *hook.args))
    return False


def _refuse_script(path: str, module: nn.Module) -> None:
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedModelError(
            "TorchScript modules can't be tuned.",
            found=f"a {type(module).__name__}",
            where=path or "the model itself",
            fix="pass the eager model that was scripted",
        )


def _cannot_alias(name: str, tensor: torch.Tensor) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"Could not share the weight `{name}` with a tuned model.",
        found=f"a {type(tensor).__name__}; sharded and lazy weights, and subclasses that don't tell what is inside of "
        "them (`__tensor_flatten__`), are not supported yet",
        where=name,
        fix="pass the model in a plain dtype and initialised; quantise or shard the tuned model afterwards",
    )
