"""What a tuner, or any function of Python's, computes: found by running it on fake tensors, in both modes."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from fxtune.hoisting.call import is_tensor, walk
from fxtune.hoisting.values import values_of, within
from fxtune.modes import modes_kept


class Traces:
    """Graphs of ATen operators by what was traced; tuners with equal settings and inputs have one."""

    def __init__(self) -> None:
        self._known: dict[Any, list[fx.Graph]] = {}

    def of(self, node: fx.Node, owner: nn.Module, vals: list[Any]) -> list[fx.Graph]:
        """What the call computes in training and in evaluation, given these values of `operands`.

        Empty where that can't be told: it reads numbers, or runs what is no operator.
        """
        key = (_call_key(node, owner), tuple(map(_value_key, vals)))
        if key not in self._known:
            # Whatever a tuner does that can't be followed, it is then left as it is.
            with contextlib.suppress(Exception):
                self._known[key] = [_trace(node, owner, vals, training=mode) for mode in (True, False)]
        return self._known.setdefault(key, [])


def operands(node: fx.Node) -> list[fx.Node]:
    """The tensors among the arguments of a call, as often as they stand there."""
    found: list[fx.Node] = []
    walk((node.args, node.kwargs), lambda leaf: found.append(leaf) if is_tensor(leaf) else None)
    return found


def _trace(node: fx.Node, owner: nn.Module, vals: list[Any], *, training: bool) -> fx.Graph:
    call: Any = owner.get_submodule(str(node.target)) if node.op == "call_module" else node.target

    def run(*tensors: Tensor) -> Any:
        given = iter(tensors)
        args, kwargs = (
            walk(arguments, lambda leaf: next(given) if is_tensor(leaf) else values_of(leaf, owner))
            for arguments in (node.args, node.kwargs)
        )
        return call(*args, **kwargs)

    modules = list(call.modules()) if isinstance(call, nn.Module) else []
    with within(vals), modes_kept(modules):
        for module in modules:
            module.training = training
        traced: fx.GraphModule = make_fx(run, pre_dispatch=True, _allow_non_fake_inputs=True)(*vals)
    for inner in traced.graph.nodes:
        if inner.op == "get_attr":
            inner.meta.setdefault("val", getattr(traced, str(inner.target)))
    return traced.graph


def _call_key(node: fx.Node, owner: nn.Module) -> Any:
    called = owner.get_submodule(str(node.target)) if node.op == "call_module" else node.target
    others: list[Any] = []
    walk((node.args, node.kwargs), lambda leaf: None if is_tensor(leaf) else others.append(values_of(leaf, owner)))
    shape = walk((node.args, node.kwargs), is_tensor)
    return tuple(_thing_key(thing) for thing in (called, *others)), str(shape)


def _thing_key(thing: Any) -> Any:
    if isinstance(thing, nn.Module):
        return tuple((name, *_settings(inner)) for name, inner in thing.named_modules())
    return thing if callable(thing) else str(thing)


def _settings(module: nn.Module) -> tuple[Any, ...]:
    """What tells two modules of a class apart, weights aside; of objects that are no numbers or texts, which ones."""
    plain = (bool, int, float, str, tuple, type(None), torch.dtype)
    own = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
    return (
        type(module),
        getattr(module.forward, "__name__", ""),
        tuple(
            (name, repr(value) if isinstance(value, plain) else _identity(value)) for name, value in sorted(own.items())
        ),
        tuple((name, _value_key(weight)) for name, weight in [*module._parameters.items(), *module._buffers.items()]),
    )


def _identity(value: Any) -> Any:
    return getattr(value, "__func__", None) or id(value)  # a method of the module's own has its function in common


def _value_key(value: Any) -> Any:
    return (str(tuple(value.shape)), value.dtype, str(value.device)) if isinstance(value, Tensor) else value
