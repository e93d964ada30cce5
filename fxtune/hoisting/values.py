"""The values that nodes are known to have: fake tensors, which have sizes and no numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fxtune.hoisting.call import walk
from fxtune.hoisting.part import Part


def known(node: fx.Node, owner: nn.Module) -> Any:
    """A node's value; it is computed where there is none, as for a tuner's, and None where that can't be done."""
    if node.meta.get("val") is None and node.op in ("call_function", "call_module", "get_attr"):
        for operand in node.all_input_nodes:
            known(operand, owner)
        node.meta["val"] = _computed(node, owner)
    return node.meta.get("val")


def mode_of(vals: Any) -> FakeTensorMode | None:
    """The mode that fake tensors among some values belong to."""
    found: list[FakeTensorMode] = []
    walk(vals, lambda leaf: found.append(leaf.fake_mode) if isinstance(leaf, FakeTensor) else None)
    return found[0] if found else None


def values_of(arguments: Any, owner: nn.Module | None = None) -> Any:
    """Arguments with the values of nodes in their place; a module that a node gets is itself."""

    def value(leaf: Any) -> Any:
        if not isinstance(leaf, fx.Node):
            return leaf
        val = leaf.meta.get("val")
        return _held(leaf, owner) if val is None and leaf.op == "get_attr" and owner is not None else val

    return walk(arguments, value)


def part_of(val: Any, part: Part) -> Any:
    """A part of a tensor, in memory of its own."""
    if not part or not isinstance(val, Tensor):
        return val
    sizes = list(val.shape)
    for axis, range in part:
        sizes[axis] = range.length
    with within(val):
        return val.new_empty(sizes)


@contextlib.contextmanager
def within(vals: Any) -> Iterator[None]:
    """Runs operators on fake tensors, with weights that are none."""
    mode = mode_of(vals)
    if mode is None:
        yield
        return
    allowed, mode.allow_non_fake_inputs = mode.allow_non_fake_inputs, True
    try:
        with mode:
            yield
    finally:
        mode.allow_non_fake_inputs = allowed


def _computed(node: fx.Node, owner: nn.Module) -> Any:
    """What a node's call gives; None where it can't be told without numbers."""
    if node.op == "get_attr":
        held = _held(node, owner)
        return held if isinstance(held, Tensor) else None
    call = owner.get_submodule(str(node.target)) if node.op == "call_module" else node.target
    args, kwargs = values_of(node.args, owner), values_of(node.kwargs, owner)
    with contextlib.suppress(Exception), within((args, kwargs)), torch.no_grad():
        return call(*args, **kwargs)  # type: ignore[operator]
    return None


def _held(node: fx.Node, owner: nn.Module) -> Any:
    path, _, name = str(node.target).rpartition(".")
    return getattr(owner.get_submodule(path), name, None)
