"""The values of a captured model: its nested graphs, read as one straight run of ATen operations."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import fx

from fxtune.vocabulary import base_name


@dataclass(frozen=True)
class Tap:
    """A place where a value can be read: the module path of a region and a node of its graph."""

    region: str
    node: str

    def __str__(self) -> str:
        return f"{self.region or '<root>'}:{self.node}"


@dataclass(eq=False, slots=True)
class Value:
    """One value of the model.

    Attributes:
        id: position in the order of computation.
        op: ATen name without overload; ``input``, ``param``, ``buffer``, ``opaque`` for values that no operator makes.
        target: the operator, or the state_dict name of a parameter or buffer.
        args: the operator's arguments with values in place of nodes.
        kwargs: likewise.
        val: what the export saw: a fake tensor, or a tuple of them.
        module: path of the module that computes it.
        taps: where it can be read; empty inside a folded leaf.
        leaf: whether it is computed inside a folded leaf module.
    """

    id: int
    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    val: Any
    module: str
    taps: list[Tap] = field(default_factory=list)
    leaf: bool = False
    _inputs: tuple[Value, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        found: list[Value] = []
        fx.node.map_aggregate((self.args, self.kwargs), lambda a: found.append(a) if isinstance(a, Value) else None)
        self._inputs = tuple(found)

    @property
    def shape(self) -> tuple[Any, ...]:
        """Sizes: ints, or symbolic ints; empty for what is no tensor."""
        return tuple(self.val.shape) if isinstance(self.val, torch.Tensor) else ()

    @property
    def inplace(self) -> bool:
        """Whether computing it overwrites its first argument."""
        schema = getattr(self.target, "_schema", None)
        return bool(schema and schema.arguments and schema.arguments[0].is_write)

    def inputs(self) -> tuple[Value, ...]:
        """The values among the arguments, in order."""
        return self._inputs

    def place(self) -> str:
        """How a person finds the value: module path and operator."""
        where = str(self.taps[0]) if self.taps else self.module or "<root>"
        sizes = ", ".join(map(str, self.shape))
        return f"{where} ({self.op}{f' [{sizes}]' if sizes else ''})"


def example_size(size: Any) -> int:
    """A size in the example inputs. Symbolic sizes are written in many ways, and comparing them would put guards on."""
    hint: Any = size.node.hint if isinstance(size, torch.SymInt) else size
    return int(hint)


def written(size: Any) -> str:
    """A size as text. Symbolic sizes are compared as they are written: comparing them would put guards on."""
    return _expression(size.node.expr) if isinstance(size, torch.SymInt) else str(size)


@lru_cache(maxsize=1024)
def _expression(expression: Any) -> str:
    """Kept, because writing one takes sympy long, and the values of one stage all have the same."""
    return str(expression)


def join(*paths: str) -> str:
    """Module paths, dotted together; empty ones left out."""
    return ".".join(p for p in paths if p)


class _Reader:
    def __init__(self) -> None:
        self.values: list[Value] = []
        self.named: dict[str, Value] = {}

    def new(self, op: str, target: Any, args: Any, kwargs: Any, val: Any, module: str, leaf: bool = False) -> Value:
        value = Value(len(self.values), op, target, args, kwargs, val, module, leaf=leaf)
        self.values.append(value)
        return value

    def state(self, owner: torch.nn.Module, path: str, target: str, val: Any) -> Value:
        """The parameter or buffer that a get_attr node names; one value a name."""
        name = join(path, target)
        if name not in self.named:
            prefix = target.rpartition(".")[0]
            self.named[name] = self.new(_kind(owner, target), name, (), {}, val, join(path, prefix))
        return self.named[name]

    def read(self, module: fx.GraphModule, path: str, inputs: list[Any]) -> Any:
        """Walks one region; gives the value (or tuple of values) that it returns."""
        env: dict[fx.Node, Any] = {}
        given = iter(inputs)
        result: Any = None
        for node in module.graph.nodes:
            if node.op == "output":
                result = fx.node.map_arg(node.args[0], env.__getitem__)
                break
            made = self._node(module, path, node, env, given)
            if isinstance(made, Value) and made.op not in ("param", "buffer"):
                made.taps.append(Tap(path, node.name))
            env[node] = made
        return result

    def _node(self, module: fx.GraphModule, path: str, node: fx.Node, env: dict[fx.Node, Any], given: Any) -> Any:
        val = node.meta.get("val")
        args: Any
        kwargs: Any
        if node.op == "placeholder":
            return next(given)
        if node.op == "get_attr":
            return self.state(module, path, str(node.target), val)
        args = fx.node.map_arg(node.args, env.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, env.__getitem__)
        if node.op == "call_module":
            child, child_path = module.get_submodule(str(node.target)), join(path, str(node.target))
            if isinstance(child, fx.GraphModule):
                return self.read(child, child_path, list(args))
            if (body := node.meta.get("body")) is not None:
                return self._body(child, child_path, body, list(args))
            return self.new("opaque", str(node.target), args, kwargs, val, child_path)
        if node.target is operator.getitem and isinstance(args[0], tuple | list):
            return args[0][args[1]]
        return self.new(base_name(node.target), node.target, args, kwargs, val, path)

    def _body(self, leaf: torch.nn.Module, path: str, body: fx.Graph, inputs: list[Any]) -> Any:
        """A folded leaf: the operators that it ran when it was exported."""
        env: dict[fx.Node, Any] = {}
        given = iter(inputs)
        for node in body.nodes:
            if node.op == "output":
                return fx.node.map_arg(node.args[0], env.__getitem__)
            val = node.meta.get("val")
            if node.op == "placeholder":
                env[node] = next(given)
            elif node.op == "get_attr":
                env[node] = self.state(leaf, path, str(node.target), val)
            else:
                args = fx.node.map_arg(node.args, env.__getitem__)
                kwargs = fx.node.map_arg(node.kwargs, env.__getitem__)
                env[node] = self.new(base_name(node.target), node.target, args, kwargs, val, path, leaf=True)
        return None


def _kind(owner: torch.nn.Module, target: str) -> str:
    """What a name stands for; a constant that capture lifted out of a leaf is no attribute of the leaf itself."""
    prefix, _, last = target.rpartition(".")
    try:
        return "param" if last in owner.get_submodule(prefix)._parameters else "buffer"
    except AttributeError:
        return "buffer"


def read_values(module: fx.GraphModule) -> tuple[list[Value], list[Value]]:
    """All values of a captured model in the order of computation, and those that it returns.

    Args:
        module: a captured model: regions call regions, folded leaves carry their operators in ``meta["body"]``.
    """
    reader = _Reader()
    inputs = [
        reader.new("input", node.name, (), {}, node.meta.get("val"), "")
        for node in module.graph.nodes
        if node.op == "placeholder"
    ]
    result = reader.read(module, "", list(inputs))
    returned: list[Value] = []
    fx.node.map_aggregate(result, lambda a: returned.append(a) if isinstance(a, Value) else None)
    return reader.values, returned
