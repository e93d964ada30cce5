"""The tree of module calls behind a flat graph, read off each node's ``nn_module_stack``."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.fx import Node

from fxtune.tracing.export import Exported
from fxtune.tracing.flat import Context, is_size, is_tensor


@dataclass(eq=False)
class Call:
    """One call of one module.

    Args:
        key: the module's path, with ``@n`` for its n-th further call.
        path: the path at which the module was called.
        first, last: positions of its first and last node in the flat order.
        items: its own nodes and the calls that it made, in order.
        folded: whether the call stays a call of the live module.
        inputs: values from outside that it needs, the one used first at the front.
        outputs: values that are used after it.
    """

    key: str
    path: str
    module: nn.Module
    parent: Call | None
    first: int = 0
    last: int = 0
    items: list[Node | Call] = field(default_factory=list)
    folded: bool = False
    inputs: list[Node] = field(default_factory=list)
    outputs: list[Node] = field(default_factory=list)

    def walk(self) -> Iterator[Call]:
        yield self
        for item in self.items:
            if isinstance(item, Call):
                yield from item.walk()

    def nodes(self) -> Iterator[Node]:
        """Every node inside, in flat order."""
        for item in self.items:
            if isinstance(item, Call):
                yield from item.nodes()
            else:
                yield item


class Homes:
    """Where each tensor of a model is registered: by identity, so that tied weights are found at every path."""

    def __init__(self, model: nn.Module) -> None:
        self._paths: dict[int, list[str]] = {}
        for name, tensor in [
            *model.named_parameters(remove_duplicate=False),
            *model.named_buffers(remove_duplicate=False),
        ]:
            self._paths.setdefault(id(tensor), []).append(name)

    def below(self, path: str, tensor: Tensor) -> str | None:
        """The shortest path of ``tensor`` relative to the module at ``path``, if it lies there or below."""
        prefix = path + "." if path else ""
        found = [name[len(prefix) :] for name in self._paths.get(id(tensor), ()) if name.startswith(prefix)]
        return min(found, key=lambda name: name.count("."), default=None)


class Tree:
    """The calls of one exported graph.

    Args:
        dissolved: paths of modules whose calls are not kept as calls; their nodes belong to the caller.
    """

    def __init__(self, exported: Exported, model: nn.Module, dissolved: frozenset[str] = frozenset()) -> None:
        self.exported = exported
        self.model = model
        self.homes = Homes(model)
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.dissolved = dissolved
        self.order: list[Node] = [
            n for n in exported.graph.nodes if n.op not in ("placeholder", "output", "get_attr") and not is_size(n)
        ]
        self.position = {node: i for i, node in enumerate(self.order)}
        self.result = next(n for n in reversed(exported.graph.nodes) if n.op == "output")
        self.position[self.result] = len(self.order)
        while True:
            scattered = self._grow()
            if scattered is None:
                break
            self.dissolved |= self.paths(scattered)
        for call in self.root.walk():
            call.inputs, call.outputs = self._inputs(call), self._outputs(call)
        self._fold()
        self.root.inputs = list(exported.inputs.values())

    def paths(self, module: nn.Module) -> frozenset[str]:
        """Every path at which a module is registered."""
        return frozenset(path for path, other in self.modules.items() if other is module)

    def weight(self, node: Node) -> Tensor | None:
        """The model's tensor that a lifted placeholder stands for."""
        return self.exported.tensors.get(node)

    def context(self, item: Node | Call) -> tuple[Context, ...]:
        """The contexts that hold for the whole of an item, outermost first."""
        if isinstance(item, Node):
            return tuple(item.meta.get("contexts", ()))
        common: tuple[Context, ...] | None = None
        for node in self.order[item.first : item.last + 1]:
            contexts = node.meta.get("contexts", ())
            if not contexts:
                return ()
            if common is None:
                common = contexts
            else:
                same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(common, contexts, strict=False))
                common = tuple(context for context, _ in same)
        return common or ()

    def _grow(self) -> nn.Module | None:
        """Builds the tree; returns a module one of whose calls does not lie in one piece, if there is one."""
        self.root = Call("", "", self.model, None, 0, len(self.order) - 1)
        chains: dict[tuple[str, ...], list[Call]] = {(): [self.root]}
        chain = [self.root]
        keys: tuple[str, ...] | None = None
        closed: set[int] = set()
        for at, node in enumerate(self.order):
            stack = node.meta.get("nn_module_stack") or {}
            new = tuple(stack)
            if new != keys and new and new[0] != "_empty_nn_module_stack_from_metadata_hook":
                keys = new
                before = chain
                if new not in chains:
                    chains[new] = self._chain(stack.items(), chains)
                chain = chains[new]
                for call in chain:
                    if id(call) in closed:
                        return call.module
                for call in before:
                    if call not in chain:
                        closed.add(id(call))
                for parent, call in itertools.pairwise(chain):
                    if not call.items and (not parent.items or parent.items[-1] is not call):
                        call.first = at
                        parent.items.append(call)
            chain[-1].items.append(node)
            for call in chain:
                call.last = at
        return None

    def _chain(
        self, stack: Iterable[tuple[str, tuple[str, object]]], chains: dict[tuple[str, ...], list[Call]]
    ) -> list[Call]:
        chain = [self.root]
        prefix: tuple[str, ...] = ()
        for depth, (key, (path, _)) in enumerate(stack):
            prefix = (*prefix, key)
            if depth == 0:
                continue
            if prefix not in chains:
                path = path.split("@")[0]
                module = self.modules.get(path)
                if module is None or path in self.dissolved:
                    chains[prefix] = list(chain)
                else:
                    chains[prefix] = [*chain, Call(key, path, module, chain[-1])]
            chain = chains[prefix]
        return chain

    def _fold(self) -> None:
        for call in self.root.walk():
            if call is self.root or call.module._modules or not self.exported.observed.single(call.module):
                continue
            call.folded = (
                len(call.inputs) == 1 and len(call.outputs) <= 1 and call.inputs[0] not in self.exported.tensors
            )

    def _inputs(self, call: Call) -> list[Node]:
        inputs: dict[Node, None] = {}
        for node in self.order[call.first : call.last + 1]:
            for value in node.all_input_nodes:
                if value in inputs or is_size(value) or value in self.exported.constants:
                    continue
                tensor = self.exported.tensors.get(value)
                if tensor is not None:
                    if self.homes.below(call.path, tensor) is None:
                        inputs[value] = None
                elif self.position.get(value, -1) < call.first:
                    inputs[value] = None
        return list(inputs)

    def _outputs(self, call: Call) -> list[Node]:
        last = call.last
        return [
            node
            for node in self.order[call.first : last + 1]
            if any(self.position.get(user, -1) > last for user in node.users)
        ]


def tensor_inputs(call: Call) -> list[Node]:
    return [node for node in call.inputs if is_tensor(node.meta.get("val"))]
