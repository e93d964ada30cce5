"""What a law is given, a call of an operator, and what it gives: the call that computes a part of the result."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, fx
from torch._ops import OpOverload

from fxtune.hoisting.part import WHOLE, Part, Shape
from fxtune.vocabulary import base_name


@dataclass(frozen=True)
class Want:
    """A part of a tensor, in the place of the tensor among the arguments of a call."""

    node: fx.Node
    part: Part = WHOLE


@dataclass(frozen=True)
class Touch:
    """Any part of a tensor that has all of these axes: only their sizes are read, or the dtype."""

    node: fx.Node
    axes: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Item:
    """A part of one item of what a call returns, in the place of the call."""

    node: fx.Node
    index: int
    part: Part = WHOLE


Read = Want | Touch | Item | fx.Node


@dataclass(frozen=True)
class Moved:
    """A call; tensors among its arguments are `Want`, `Touch` or `Item`."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def reads(self) -> Iterator[Read]:
        """What it reads; nodes are no tensors."""
        found: list[Read] = []

        def look(leaf: Any) -> None:
            if isinstance(leaf, Read):
                found.append(leaf)

        walk((self.args, self.kwargs), look)
        return iter(found)


class Call:
    """A call of an operator, with its arguments by the names in the operator's schema."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node

    @cached_property
    def given(self) -> dict[str, Any]:
        """Arguments by name, defaults included."""
        schema = getattr(self.node.target, "_schema", None)
        if schema is None:  # an operator of Python's: `x + y`
            return dict(zip(("self", "other"), self.node.args, strict=False))
        defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        return defaults | dict(zip(self._names, self.node.args, strict=False)) | dict(self.node.kwargs)

    @cached_property
    def _names(self) -> list[str]:
        schema = getattr(self.node.target, "_schema", None)
        return [a.name for a in schema.arguments] if schema else ["self", "other"]

    @property
    def shape(self) -> Shape:
        """Of the result."""
        return shape_of(self.node)

    def operand(self, name: str) -> fx.Node:
        """An operand that must be there."""
        found = self.given[name]
        assert isinstance(found, fx.Node)
        return found

    def shape_of(self, name: str) -> Shape:
        """Of an operand; empty for what is no tensor."""
        found = self.given.get(name)
        return shape_of(found) if isinstance(found, fx.Node) else ()

    def axis(self, name: str = "dim", of: str = "self") -> int | None:
        """An axis among the arguments, counted from the front; None where it is no number."""
        found = self.given.get(name)
        return found % max(len(self.shape_of(of)), 1) if isinstance(found, int) else None

    def axes(self, name: str = "dim", of: str = "self") -> tuple[int, ...]:
        """Axes among the arguments, counted from the front; none given are all."""
        rank, found = len(self.shape_of(of)), self.given.get(name)
        listed = [found] if isinstance(found, int) else list(found or range(rank))
        return tuple(axis % rank for axis in listed)

    def moved(
        self, parts: Mapping[str, Any], literals: Mapping[str, Any] | None = None, *, target: Any = None
    ) -> Moved:
        """This call with other parts of its operands, and other literals, by name; other tensors are read whole.

        `parts` may hold a part, a `Touch` for what is touched alone, or a list of these for a list of tensors.
        """
        literals = literals or {}

        def change(name: str, value: Any) -> Any:
            return literals[name] if name in literals else wanted(value, parts.get(name, WHOLE))

        args = tuple(change(name, value) for name, value in zip(self._names, self.node.args, strict=False))
        kwargs = {name: change(name, value) for name, value in self.node.kwargs.items()}
        later = {name: value for name, value in literals.items() if name not in self._names[: len(args)]}
        return Moved(target or self.node.target, args, kwargs | later)

    def each(self, part_of: Callable[[Shape], Part]) -> Moved:
        """This call with the part of each tensor that its shape gives."""

        def change(leaf: Any) -> Any:
            return Want(leaf, part_of(shape_of(leaf))) if is_tensor(leaf) else leaf

        return Moved(self.node.target, walk(self.node.args, change), walk(self.node.kwargs, change))


def whole(node: fx.Node) -> Moved:
    """A call that reads all of its operands."""

    def change(leaf: Any) -> Any:
        return Want(leaf) if is_tensor(leaf) else leaf

    return Moved(node.target, walk(node.args, change), walk(node.kwargs, change))


def wanted(value: Any, part: Any) -> Any:
    """An argument with its tensors as wants."""
    if isinstance(value, tuple | list):
        parts = part if isinstance(part, list) else [part] * len(value)
        return [wanted(item, each) for item, each in zip(value, parts, strict=True)]
    if not is_tensor(value):
        return value
    return part if isinstance(part, Touch) else Want(value, part)


def walk(argument: Any, leaf: Callable[[Any], Any]) -> Any:
    """The same nest of tuples, lists, dicts and slices, with every leaf mapped."""
    if isinstance(argument, tuple):
        return tuple(walk(item, leaf) for item in argument)
    if isinstance(argument, list):
        return [walk(item, leaf) for item in argument]
    if isinstance(argument, dict):
        return {key: walk(item, leaf) for key, item in argument.items()}
    if isinstance(argument, slice):
        return slice(walk(argument.start, leaf), walk(argument.stop, leaf), walk(argument.step, leaf))
    return leaf(argument)


def is_tensor(value: Any) -> bool:
    """Whether a node's value is a tensor."""
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor)


def shape_of(node: fx.Node) -> Shape:
    """The sizes of a node's value; empty for what is no tensor."""
    val = node.meta.get("val")
    return tuple(val.shape) if isinstance(val, Tensor) else ()


def item_of(node: fx.Node) -> tuple[fx.Node, int] | None:
    """For ``source[index]``: both."""
    if node.target is not operator.getitem:
        return None
    source, index = node.args
    return (source, index) if isinstance(source, fx.Node) and isinstance(index, int) else None


def op_of(node: fx.Node) -> str:
    """The name of the operator that a node calls; empty for one that overwrites something."""
    if node.op != "call_function" or overwrites(node):
        return ""
    return base_name(node.target)


def overwrites(node: fx.Node) -> bool:
    """Whether a node calls an operator that overwrites an argument."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def is_opaque(node: fx.Node) -> bool:
    """Whether a node calls code of Python's, of which an operator's schema tells nothing."""
    if node.op != "call_function":
        return node.op == "call_module"
    in_python = getattr(node.target, "__module__", None) != "_operator"
    return in_python and not isinstance(node.target, OpOverload)
