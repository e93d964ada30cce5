"""Writes one graph whose values stand for values of a flat, exported graph."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import map_aggregate

from fxtune.tracing.calls import Tree
from fxtune.tracing.contexts import ENTER, LEAVE, new_graph
from fxtune.tracing.flat import Context, is_size

_SHADOWED = {"self"}


class Writer:
    """A graph being written.

    Sizes are worked out here from tensors at hand, weights are read by ``get_attr``, and literals that follow the
    model's device or dtype are taken from a tensor when the graph runs.

    Args:
        tree: the flat graph's tree of calls.
        path: of the module that the graph is for; weights and calls are named relative to it.
        live: take devices and dtypes from tensors; False keeps them as literals.

    Attributes:
        inputs: the flat value of each placeholder, in order.
        constants: lifted constants that the graph reads, by name.
        extras: modules that its nodes brought along, by name.
    """

    def __init__(self, tree: Tree, path: str, *, live: bool = True) -> None:
        self.tree, self.path, self.live = tree, path, live
        self.graph = new_graph()
        self.env: dict[Any, Node] = {}
        self.inputs: list[Node] = []
        self.constants: dict[str, Tensor] = {}
        self.extras: dict[str, torch.nn.Module] = {}
        self.sized: list[tuple[Node, Node]] = []
        self._sizes: dict[Any, Any] = {}
        self._typed: list[Node] = []
        self._tensor: Node | None = None
        self._attributes: dict[tuple[Node, str], Node] = {}
        self._open: list[tuple[Context, Node]] = []
        self._last_input: Node | None = None

    def placeholder(self, flat: Node, name: str) -> Node:
        """A new input that stands for ``flat``, after the others."""
        first = next(iter(self.graph.nodes), None)
        if self._last_input is not None:
            spot = self.graph.inserting_after(self._last_input)
        else:
            spot = self.graph.inserting_before(first)
        with spot:
            node = self.graph.create_node("placeholder", _safe(name), name=_safe(name))
        node.target = node.name
        node.meta["val"] = flat.meta["val"]
        self._last_input = node
        self.inputs.append(flat)
        self.stands(flat, node)
        return node

    def add(self, op: str, target: Any, args: Any, kwargs: Any, name: str, val: Any) -> Node:
        node = self.graph.create_node(op, target, args, kwargs, name=_safe(name))
        node.meta["val"] = val
        return node

    def stands(self, flat: Node, node: Node) -> None:
        """Notes that ``node`` stands for ``flat`` here."""
        self.env[flat] = node
        value = flat.meta.get("val")
        if is_size(flat):
            self._sizes[_expression(value)] = node
        if isinstance(value, Tensor):
            if node.op == "placeholder":
                self.sized.append((flat, node))
            if self._tensor is None:
                self._tensor = node
            if flat.meta.get("typed"):
                self._typed.append(node)

    def copy(self, flat: Node, args: Any = None, kwargs: Any = None) -> Node:
        """Writes a flat node here; ``args`` and ``kwargs`` in place of its own, if given."""
        args, kwargs = (flat.args, flat.kwargs) if args is None else (args, kwargs)
        follows = flat.meta.get("follows")
        if follows and self.live:
            args = tuple(self._follow(arg, (i,), follows) for i, arg in enumerate(args))
            kwargs = {name: self._follow(arg, (name,), follows) for name, arg in kwargs.items()}
        args, kwargs = map_aggregate(args, self._here), map_aggregate(kwargs, self._here)
        target, name = flat.target, op_name(flat.target)
        if flat.op == "call_module":
            target = name = self._extra(str(flat.target), flat.meta["module"])
        node = self.add(flat.op, target, args, kwargs, name, flat.meta.get("val"))
        if "body" in flat.meta:
            node.meta["body"] = flat.meta["body"]
        self.stands(flat, node)
        return node

    def value(self, flat: Node) -> Any:
        """What stands for a flat value here."""
        if flat in self.env:
            return self.env[flat]
        if is_size(flat):
            return self._size(flat)
        tensor = self.tree.weight(flat)
        if tensor is None:
            raise AssertionError(f"{flat} is out of reach in {self.path or 'the root'}")
        if flat in self.tree.exported.constants:
            name = f"_constant_{len(self.constants)}"
            self.constants[name] = tensor
            target = f"constants.{name}"
        else:
            target = self.tree.homes.below(self.path, tensor) or ""
            name = target.replace(".", "_")
        node = self.add("get_attr", target, (), {}, name.lstrip("_"), flat.meta["val"])
        self.stands(flat, node)
        return node

    def within(self, contexts: tuple[Context, ...]) -> None:
        """Opens and closes contexts so that just these hold for what is written next, outermost first."""
        keep = 0
        while keep < min(len(contexts), len(self._open)) and contexts[keep] == self._open[keep][0]:
            keep += 1
        while len(self._open) > keep:
            _, marker = self._open.pop()
            self.add("call_function", LEAVE, (marker,), {}, "leave", None)
        for context in contexts[keep:]:
            kind, *args = context
            if kind == "autocast" and self.live and self._tensor is not None and args[0] == self._device_type():
                args[0] = self._attribute(self._attribute(self._tensor, "device"), "type")
            marker = self.add("call_function", ENTER[kind], tuple(args), {}, kind, None)
            self._open.append((context, marker))

    def finish(self, results: Any) -> None:
        self.within(())
        self.graph.output(results)

    def _here(self, value: Any) -> Any:
        if isinstance(value, Node):
            return self.value(value) if value.graph is not self.graph else value
        if isinstance(value, torch.device) and self.live:
            source = self._tensor or self._any_weight(None)
            return value if source is None else self._attribute(source, "device")
        return value

    def _follow(self, arg: Any, place: tuple[Any, ...], follows: dict[tuple[Any, ...], str]) -> Any:
        """Replaces literals that follow the model's dtype by what a tensor says when the graph runs."""
        kind = follows.get(place)
        if kind is None:
            if isinstance(arg, (list, tuple)):
                return type(arg)(self._follow(item, (*place, i), follows) for i, item in enumerate(arg))
            return arg
        dtype = arg if kind == "dtype" else None
        fitting = [node for node in self._typed if dtype is None or node.meta["val"].dtype == dtype]
        made = [node for node in fitting if node.op != "placeholder"]
        source = made[-1] if made else fitting[0] if fitting else self._any_weight(dtype)
        if source is None:
            return arg
        found = self._attribute(source, "dtype")
        if kind == "dtype":
            return found
        finfo = self.add("call_function", torch.finfo, (found,), {}, "finfo", None)
        return self._attribute(finfo, kind)

    def _any_weight(self, dtype: torch.dtype | None) -> Node | None:
        """Some floating weight of the module or below it."""
        for flat, tensor in self.tree.exported.tensors.items():
            fits = flat not in self.tree.exported.constants and tensor.is_floating_point()
            if fits and dtype in (None, tensor.dtype) and self.tree.homes.below(self.path, tensor) is not None:
                self.value(flat)
                return self.env[flat]
        return None

    def _attribute(self, source: Node, name: str) -> Node:
        if (source, name) not in self._attributes:
            self._attributes[source, name] = self.add("call_function", getattr, (source, name), {}, name, None)
        return self._attributes[source, name]

    def _device_type(self) -> str:
        return str(self._tensor.meta["val"].device.type) if self._tensor is not None else ""

    def _extra(self, name: str, module: torch.nn.Module) -> str:
        home = self.tree.modules[self.path]
        free, count = name, 0
        while free in self.extras or hasattr(home, free):
            count += 1
            free = f"{name}_{count}"
        self.extras[free] = module
        return free

    def _size(self, flat: Node) -> Any:
        """Works a symbolic size out from a tensor that is at hand: an input before anything else."""
        expression = _expression(flat.meta["val"])
        if expression.is_Integer:
            return int(expression)
        if expression not in self._sizes:
            self._sizes[expression] = self._find_size(expression, flat)
        return self._sizes[expression]

    def _find_size(self, expression: Any, flat: Node) -> Any:
        for source, node in self.sized:
            for dim, size in enumerate(source.meta["val"].shape):
                if isinstance(size, torch.SymInt) and _expression(size) == expression:
                    return self._sym_size(node, dim, flat)
        if flat.target is torch.ops.aten.sym_size.int and flat.args[0] in self.env:
            return self._sym_size(self.env[flat.all_input_nodes[0]], flat.args[1], flat)
        if isinstance(flat.target, OpOverload):
            return self.placeholder(flat, "size")
        args, kwargs = map_aggregate(flat.args, self._here), map_aggregate(flat.kwargs, self._here)
        return self.add("call_function", flat.target, args, kwargs, op_name(flat.target), flat.meta["val"])

    def _sym_size(self, tensor: Node, dim: Any, flat: Node) -> Node:
        return self.add("call_function", torch.ops.aten.sym_size.int, (tensor, dim), {}, "size", flat.meta["val"])


def op_name(target: Any) -> str:
    """A node's name from its operator: ``aten.add.Tensor`` gives ``add``."""
    name = target._opname if isinstance(target, OpOverload) else str(getattr(target, "__name__", target))
    return name.strip("_") or name


def _expression(size: Any) -> Any:
    return size.node.expr


def _safe(name: str) -> str:
    name = re.sub(r"\W", "_", name)
    return f"{name}_out" if name in _SHADOWED else name
