"""Writes the graphs of nested regions from the tree of calls."""

from __future__ import annotations

import inspect
import operator
import re
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate

from fxtune.tracing.calls import Call, Tree
from fxtune.tracing.writer import Writer


@dataclass(eq=False)
class Built:
    """The graph of one region, and the call that it was written from."""

    call: Call
    writer: Writer


class Inconsistent(Exception):
    """A module whose calls cannot share one region."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def build(tree: Tree) -> dict[int, Built]:
    """The region of each module that was called and is not folded, by the module's id.

    A module's calls must all come to the same code, or else they are dissolved into their callers.
    """
    while True:
        builder = _Builder(tree)
        try:
            builder.region(tree.root)
            return builder.regions
        except Inconsistent as error:
            tree = Tree(tree.exported, tree.model, tree.dissolved | tree.paths(error.module))


class _Builder:
    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.regions: dict[int, Built] = {}

    def region(self, call: Call) -> Built:
        writer = Writer(self.tree, call.path)
        for flat, name in zip(call.inputs, self._input_names(call), strict=True):
            writer.placeholder(flat, name)
        around = len(self.tree.context(call)) if call is not self.tree.root else 0
        for item in call.items:
            writer.within(self.tree.context(item)[around:])
            if isinstance(item, Node):
                writer.copy(item)
            elif item.folded:
                self._leaf(writer, item)
            else:
                self._child(writer, item)
        writer.finish(self._results(writer, call))
        return self._register(Built(call, writer))

    def _results(self, writer: Writer, call: Call) -> Any:
        if call is self.tree.root:
            flat = self.tree.result.args[0]
            results = tuple(map_aggregate(flat, lambda a: writer.value(a) if isinstance(a, Node) else a))
        else:
            results = tuple(writer.value(node) for node in call.outputs)
        return results[0] if len(results) == 1 else results

    def _input_names(self, call: Call) -> list[str]:
        """The first input is named as the module's forward names it, the others after what made them."""
        names = [re.sub(r"_\d+$", "", node.name) for node in call.inputs]
        if call is not self.tree.root and names:
            names[0] = next(iter(inspect.signature(call.module.forward).parameters), "x")
        return names

    def _leaf(self, writer: Writer, call: Call) -> None:
        target = self._relative(writer.path, call)
        out = call.outputs[0] if call.outputs else list(call.nodes())[-1]
        name = target.replace(".", "_")
        node = writer.add("call_module", target, (writer.value(call.inputs[0]),), {}, name, out.meta["val"])
        node.meta["body"] = self._body(call, out)
        writer.stands(out, node)

    def _body(self, call: Call, out: Node) -> Graph:
        body = Writer(self.tree, call.path, live=False)
        body.placeholder(call.inputs[0], "x")
        for flat in call.nodes():
            body.copy(flat)
        body.finish(body.value(out))
        return body.graph

    def _child(self, writer: Writer, call: Call) -> None:
        built = self.region(call)
        target = self._relative(writer.path, call)
        name = target.replace(".", "_")
        args = tuple(writer.value(flat) for flat in built.writer.inputs)
        vals = tuple(flat.meta["val"] for flat in call.outputs)
        node = writer.add("call_module", target, args, {}, name, vals[0] if len(vals) == 1 else vals)
        if len(vals) == 1:
            writer.stands(call.outputs[0], node)
        else:
            for i, flat in enumerate(call.outputs):
                part = writer.add("call_function", operator.getitem, (node, i), {}, f"{name}_{i}", vals[i])
                writer.stands(flat, part)

    def _relative(self, path: str, call: Call) -> str:
        """The callee's path from the caller's."""
        prefix = path + "." if path else ""
        if call.path.startswith(prefix):
            return call.path[len(prefix) :]
        for name, module in self.tree.modules[path].named_modules(remove_duplicate=False):
            if module is call.module:
                return str(name)
        raise Inconsistent(call.module)

    def _register(self, built: Built) -> Built:
        module = built.call.module
        known = self.regions.setdefault(id(module), built)
        if known is not built and not _same(known.writer, built.writer):
            raise Inconsistent(module)
        return built


def _same(a: Writer, b: Writer) -> bool:
    return len(a.inputs) == len(b.inputs) and a.graph.python_code("self").src == b.graph.python_code("self").src
