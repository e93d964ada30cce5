"""One graph while it changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import torch
from torch import fx, nn

from fxtune.planning import Note

Target = Callable[..., object] | str
Arguments = tuple[object, ...]
Keywords = Mapping[str, object]
_COPY = torch.ops.aten.clone.default


class Changes:
    """The regions of a captured model that change, each from when it is first asked for."""

    def __init__(self, root: fx.GraphModule) -> None:
        self._root = root
        self._regions: dict[int, Growing] = {}
        self.notes: dict[Note, fx.Node] = {}
        """Notes of sizes, where they are read."""

    def region(self, path: str) -> Growing:
        """The graph of the region at a module path; a module may stand under two."""
        module = self._root.get_submodule(path)
        assert isinstance(module, fx.GraphModule)
        if id(module) not in self._regions:
            self._regions[id(module)] = Growing(module)
        return self._regions[id(module)]

    def finish(self) -> None:
        """Checks every graph and makes its code anew."""
        for growing in self._regions.values():
            growing.graph.lint()
            growing.module.recompile()


class Growing:
    """A region's graph, in which nodes are known by the names that they had when the patch was planned."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.graph = module, module.graph
        self._original: dict[str, fx.Node] = {node.name: node for node in self.graph.nodes}
        self._current: dict[fx.Node, fx.Node] = {}
        self._operations: dict[str, fx.Node] = {}
        self.weights: dict[tuple[str, str], fx.Node] = {}
        """Tuned weights: by operation and name of the weight."""
        self.hands_out = False
        """Whether it returns a tuple: its own result, then what it hands out to the regions around it."""
        self._once: dict[tuple[fx.Node, Target], fx.Node] = {}
        self._given: dict[tuple[str, fx.Node], fx.Node] = {}
        self._beside: dict[str, list[fx.Node]] = defaultdict(list)

    def tuners(self) -> nn.ModuleDict:
        """The tuners of the region."""
        if "tuners" not in self.module._modules:
            self.module.add_module("tuners", nn.ModuleDict())
        tuners = self.module.tuners
        assert isinstance(tuners, nn.ModuleDict)
        return tuners

    def original(self, name: str) -> fx.Node:
        """The node that the model itself computes under this name."""
        return self._original[name]

    def current(self, name: str) -> fx.Node:
        """The node that has this name's value as the graph is now, tuned or not."""
        node = self._original[name]
        return self._current.get(node, node)

    def operation(self, name: str) -> fx.Node:
        """The node that does the operation of this name itself, whatever tuners came behind it."""
        return self._operations.get(name, self._original[name])

    def compute(self, name: str, after: fx.Node) -> None:
        """Lets `after` do the operation of this name from now on."""
        before = self.operation(name)
        if self.current(name) is before:
            self.replace(name, list(before.users), after)
        else:
            before.replace_all_uses_with(after)
        self._operations[name] = after
        self.drop(before)

    def replace(self, name: str, readers: Iterable[fx.Node], after: fx.Node) -> None:
        """Gives `readers` the node `after` instead of the value called `name`, whose value that is from now on."""
        before = self.current(name)
        after.meta.setdefault("val", before.meta.get("val"))
        for reader in readers:
            reader.replace_input_with(before, after)
        self._current[self._original[name]] = after

    def give(self, readers: Iterable[str], before: fx.Node, after: fx.Node) -> None:
        """Gives the operations of these names, and the tuners beside them, `after` where they read `before`.

        The value keeps its name: others go on reading it as it was.
        """
        for name in readers:
            self._given[name, before] = after
            for node in (self.current(name), self.operation(name), *self._beside[name]):
                if not node._erased:
                    self._swap(node, before, after)

    def read_beside(self, operation: str, name: str, *, copied: bool) -> fx.Node:
        """What a tuner beside an operation reads under this name: what the operation itself is given there.

        Args:
            operation: name of the operation.
            name: of the value.
            copied: take a copy right behind its producer: later it may be overwritten.
        """
        node = self.current(name)
        while (operation, node) in self._given:
            node = self._given[operation, node]
        return self.once_behind(node, _COPY) if copied else node

    def stand_beside(self, operation: str, readers: Iterable[fx.Node]) -> None:
        """Lets nodes read what the operation of this name reads, whatever that is given later."""
        self._beside[operation] += readers

    def _swap(self, reader: fx.Node, before: fx.Node, after: fx.Node) -> None:
        copy = self._once.get((before, _COPY))
        if copy is not None and copy in reader.all_input_nodes:
            reader.replace_input_with(copy, self.once_behind(after, _COPY))
        reader.replace_input_with(before, after)

    def copy_of(self, name: str) -> fx.Node:
        """A copy of the value, taken right behind its producer: later it may be overwritten."""
        return self.once_behind(self.current(name), _COPY)

    def behind(
        self, node: fx.Node, target: Target, args: Arguments, kwargs: Keywords = MappingProxyType({})
    ) -> fx.Node:
        """A new node right behind `node`; a text names a module."""
        with self.graph.inserting_after(node):
            return self._new(target, args, kwargs)

    def once_behind(self, node: fx.Node, target: Target) -> fx.Node:
        """The one node right behind `node` that applies a function, which leaves the shape as it is, to it alone."""
        key = (node, target)
        if key not in self._once:
            self._once[key] = self.behind(node, target, (node,))
            self._once[key].meta["val"] = node.meta.get("val")
        return self._once[key]

    def before(
        self, node: fx.Node, target: Target, args: Arguments, kwargs: Keywords = MappingProxyType({})
    ) -> fx.Node:
        """A new node right before `node`; a text names a module."""
        with self.graph.inserting_before(node):
            return self._new(target, args, kwargs)

    def _new(self, target: Target, args: Arguments, kwargs: Keywords) -> fx.Node:
        kind = "call_module" if isinstance(target, str) else "call_function"
        made: fx.Node = self.graph.create_node(kind, target, args, dict(kwargs))  # type: ignore[arg-type]
        return made

    def state(self, node: fx.Node, name: str) -> fx.Node:
        """A parameter, or a module, that the region holds; got right before `node`."""
        with self.graph.inserting_before(node):
            return self.graph.get_attr(name)

    def drop(self, node: fx.Node) -> None:
        """Erases a node that nobody reads any more, and what only it read."""
        if node.users or node.op == "placeholder":
            return
        operands = list(node.all_input_nodes)
        self.graph.erase_node(node)
        for operand in operands:
            if not operand.is_impure() or _overwrites_its_own(operand):
                self.drop(operand)


def _overwrites_its_own(node: fx.Node) -> bool:
    """Whether an in-place operator changes nothing but a value that nobody else can read."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    given = zip(node.target._schema.arguments, node.args, strict=False)
    written = [value for argument, value in given if argument.alias_info and argument.alias_info.is_write]
    return bool(written) and all(isinstance(value, fx.Node) and _alone(value) for value in written)


def _alone(value: fx.Node) -> bool:
    """Whether a value has one reader, and memory of its own."""
    target = value.target
    new = isinstance(target, torch._ops.OpOverload) and not any(r.alias_info for r in target._schema.returns)
    return new and len(value.users) == 1
