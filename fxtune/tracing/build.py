"""Writes the graphs of nested regions from the tree of calls."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate

from fxtune.tracing.calls import Call, Tree
from fxtune.tracing.flat import is_size

SHADOWED = {"self"}


@dataclass(eq=False)
class Built:
    """The graph of one region.

    Args:
        inputs: the flat values that it takes, in order of its placeholders.
        outputs: the flat values that it returns.
        extras: parameter-free modules that its graph calls, by name.
        constants: lifted constants that it reads, by name.
    """

    call: Call
    graph: Graph
    inputs: list[Node]
    outputs: list[Node]
    children: dict[str, nn.Module] = field(default_factory=dict)
    extras: dict[str, nn.Module] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)


class Inconsistent(Exception):
    """A module whose calls cannot share one region."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module


def build(tree: Tree) -> dict[int, Built]:
    """The region of each module that was called and is not folded, by the module's id.

    A module is called with the same code each time, or else its calls are dissolved into the callers.
    """
    while True:
        regions: dict[int, Built] = {}
        try:
            _Builder(tree, regions).region(tree.root)
            return regions
        except Inconsistent as error:
            tree = Tree(tree.exported, tree.model, frozenset(tree.dissolved | {id(error.module)}))


class Writer:
    """A graph being written whose values stand for the values of a flat graph."""

    def __init__(self, tree: Tree, path: str) -> None:
        self.tree = tree
        self.path = path
        self.graph = Graph()
        self.env: dict[Node, Any] = {}
        self.inputs: list[Node] = []
        self.constants: dict[str, Tensor] = {}
        self.sizes: dict[Any, Any] = {}
        self._last_input: Node | None = None

    def placeholder(self, flat: Node, name: str) -> Node:
        with self.graph.inserting_after(self._last_input) if self._last_input else self.graph.inserting_before():
            node = self.graph.create_node("placeholder", _safe(name), name=_safe(name))
        node.target = node.name
        node.meta["val"] = flat.meta["val"]
        self._last_input = node
        self.env[flat] = node
        self.inputs.append(flat)
        return node

    def add(self, op: str, target: Any, args: Any, kwargs: Any, name: str, val: Any) -> Node:
        node = self.graph.create_node(op, target, args, kwargs, name=_safe(name))
        node.meta["val"] = val
        return node

    def value(self, flat: Node) -> Any:
        """What stands for a flat value here."""
        if flat in self.env:
            return self.env[flat]
        if is_size(flat):
            return self._size(flat)
        tensor = self.tree.weight(flat)
        if tensor is None:
            raise AssertionError(f"{flat} is not in reach of {self.path or 'the root'}")
        if flat in self.tree.exported.constants:
            return self._constant(flat, tensor)
        target = self.tree.homes.below(self.path, tensor)
        if target is None:
            raise AssertionError(f"{flat} is no weight of {self.path or 'the root'}")
        self.env[flat] = self.add("get_attr", target, (), {}, target.replace(".", "_"), flat.meta["val"])
        return self.env[flat]

    def _constant(self, flat: Node, tensor: Tensor) -> Node:
        name = f"_constant_{len(self.constants)}"
        self.constants[name] = tensor
        self.env[flat] = self.add("get_attr", f"constants.{name}", (), {}, name.strip("_"), flat.meta["val"])
        return self.env[flat]

    def _size(self, flat: Node) -> Any:
        """Works a symbolic size out from a tensor that is at hand: an input before anything else."""
        expression = expression_of(flat.meta["val"])
        if expression in self.sizes:
            return self.sizes[expression]
        if not expression.free_symbols and expression.is_Integer:
            return int(expression)
        found = self._find_size(expression, flat)
        self.sizes[expression] = found
        return found

    def _find_size(self, expression: Any, flat: Node) -> Any:
        for source in self.inputs:
            shape = _shape(source)
            for dim, size in enumerate(shape):
                if isinstance(size, torch.SymInt) and expression_of(size) == expression:
                    return self._sym_size(self.env[source], dim, flat)
        if flat.target is torch.ops.aten.sym_size.int and flat.args[0] in self.env:
            return self._sym_size(self.env[flat.args[0]], flat.args[1], flat)
        if flat.target in (torch.ops.aten.sym_size.int, torch.ops.aten.sym_numel.default):
            return self.placeholder(flat, "size")
        args = map_aggregate(flat.args, lambda a: self.value(a) if isinstance(a, Node) else a)
        kwargs = map_aggregate(flat.kwargs, lambda a: self.value(a) if isinstance(a, Node) else a)
        return self.add("call_function", flat.target, args, kwargs, op_name(flat.target), flat.meta["val"])

    def _sym_size(self, tensor: Node, dim: Any, flat: Node) -> Node:
        return self.add("call_function", torch.ops.aten.sym_size.int, (tensor, dim), {}, "size", flat.meta["val"])

    def copy(self, flat: Node, literal: Callable[[Any], Any] | None = None) -> Node:
        """Writes a flat node here."""

        def here(value: Any) -> Any:
            if isinstance(value, Node):
                return self.value(value)
            return literal(value) if literal is not None else value

        args, kwargs = map_aggregate(flat.args, here), map_aggregate(flat.kwargs, here)
        node = self.add(flat.op, flat.target, args, kwargs, op_name(flat.target), flat.meta.get("val"))
        self.env[flat] = node
        return node

    def finish(self, results: Any) -> None:
        self.graph.output(results)


class _Builder:
    def __init__(self, tree: Tree, regions: dict[int, Built]) -> None:
        self.tree = tree
        self.regions = regions

    def region(self, call: Call) -> Built:
        writer = Writer(self.tree, call.path)
        built = Built(call, writer.graph, writer.inputs, call.outputs, constants=writer.constants)
        for flat, name in zip(call.inputs, self._input_names(call), strict=True):
            writer.placeholder(flat, name)
        for item in call.items:
            if isinstance(item, Node):
                writer.copy(item)
            elif item.folded:
                self._leaf(writer, item)
            else:
                self._child(writer, item)
        results = self._results(writer, call)
        writer.finish(results)
        return self._register(built)

    def _results(self, writer: Writer, call: Call) -> Any:
        if call is self.tree.root:
            flat = self.tree.result.args[0]
            results = tuple(map_aggregate(flat, lambda a: writer.value(a) if isinstance(a, Node) else a))
        else:
            results = tuple(writer.value(node) for node in call.outputs)
        return results[0] if len(results) == 1 else results

    def _input_names(self, call: Call) -> list[str]:
        if call is self.tree.root:
            return [node.name for node in call.inputs]
        return ["x" if i == 0 else re.sub(r"_\d+$", "", node.name) for i, node in enumerate(call.inputs)]

    def _leaf(self, writer: Writer, call: Call) -> None:
        target = self._relative(writer.path, call)
        out = call.outputs[0] if call.outputs else list(call.nodes())[-1]
        name = target.replace(".", "_")
        node = writer.add("call_module", target, (writer.value(call.inputs[0]),), {}, name, out.meta["val"])
        node.meta["body"] = self._body(call, out)
        writer.env[out] = node

    def _body(self, call: Call, out: Node) -> Graph:
        body = Writer(self.tree, call.path)
        body.placeholder(call.inputs[0], "input")
        for flat in call.nodes():
            body.copy(flat)
        body.finish(body.value(out))
        return body.graph

    def _child(self, writer: Writer, call: Call) -> None:
        built = self.region(call)
        target = self._relative(writer.path, call)
        name = target.replace(".", "_")
        args = tuple(writer.value(flat) for flat in built.inputs)
        vals = tuple(flat.meta["val"] for flat in built.outputs)
        node = writer.add("call_module", target, args, {}, name, vals[0] if len(vals) == 1 else vals)
        if len(vals) == 1:
            writer.env[built.outputs[0]] = node
        else:
            import operator

            for i, flat in enumerate(built.outputs):
                writer.env[flat] = writer.add("call_function", operator.getitem, (node, i), {}, f"{name}_{i}", vals[i])

    def _relative(self, path: str, call: Call) -> str:
        prefix = path + "." if path else ""
        if call.path.startswith(prefix):
            return call.path[len(prefix) :]
        home = self.tree.modules[path]
        for name, module in home.named_modules(remove_duplicate=False):
            if module is call.module:
                return name
        raise Inconsistent(call.module)

    def _register(self, built: Built) -> Built:
        known = self.regions.get(id(built.call.module))
        if known is None:
            self.regions[id(built.call.module)] = built
        elif not _same(known, built):
            raise Inconsistent(built.call.module)
        return built


def _same(a: Built, b: Built) -> bool:
    return len(a.inputs) == len(b.inputs) and str(a.graph.python_code("self").src) == str(b.graph.python_code("self").src)


def expression_of(size: Any) -> Any:
    return size.node.expr


def _shape(flat: Node) -> Any:
    value = flat.meta.get("val")
    return value.shape if isinstance(value, Tensor) else ()


def op_name(target: Any) -> str:
    if isinstance(target, OpOverload):
        return target._opname
    return str(getattr(target, "__name__", target))


def _safe(name: str) -> str:
    name = re.sub(r"\W", "_", name)
    return f"{name}_out" if name in SHADOWED else name
