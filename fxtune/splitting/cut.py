"""Where a flat graph is cut: what belongs to the branch, and which values of the trunk cross to it."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import fx, nn

from fxtune.errors import PlanError
from fxtune.splitting.kinds import is_tensor, only_rearranges, takes_part
from fxtune.splitting.memory import Memory
from fxtune.tracing import ENTER

TUNERS = "tuners"
"""The component of a path that tells that a weight is a tuner's."""


class Cut:
    """The cut through a flat graph.

    The branch is all that depends on a tuner or on a weight that trains; the trunk is the rest. So a part that the
    branch takes of a trunk's value (one token of a Block's output) is taken in the trunk, and the part crosses. What
    only rearranges a value is done anew in the branch, lest the same numbers cross twice; so is a part of a value that
    crosses as a whole anyway.

    Args:
        graph: a flat graph.
        root: its module.

    Raises:
        PlanError: the branch writes to the trunk's memory.
    """

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self.graph, self._root = graph, root
        self.memory = Memory(graph, root)
        self.branch: set[fx.Node] = set()
        for node in graph.nodes:
            if node.op == "output" or node.target in ENTER.values():
                continue
            if self._trains(node) or not self.branch.isdisjoint(node.all_input_nodes):
                self.branch.add(node)
        self._alike: dict[tuple[fx.Node, str, str], fx.Node] = {}
        self._check_memory()

    def in_branch(self, node: fx.Node) -> bool:
        """Whether a node depends on what trains; the output is the branch's too."""
        return node in self.branch or node.op == "output"

    @cached_property
    def crossing(self) -> list[fx.Node]:
        """The tensors of the trunk that the branch reads, in the order of computation; sizes aside."""
        read = dict.fromkeys(self.standing_for(value) for node in self._readers() for value in self._tensors_of(node))
        for node in list(read):
            if self.source_of_part(node) in read:
                del read[node]
        return [node for node in self.graph.nodes if node in read]

    def standing_for(self, value: fx.Node) -> fx.Node:
        """The value that has the numbers of a trunk's value before they were rearranged."""
        while only_rearranges(value) and not self.memory.writers(_source(value)):
            value = _source(value)
        return self._first_alike(value)

    def source_of_part(self, value: fx.Node) -> fx.Node | None:
        """Of what a value is a part, if it is one, and can still be taken when the trunk has run."""
        if not takes_part(value) or self.memory.writers(value) or self.memory.writers(_source(value)):
            return None
        return self.standing_for(_source(value))

    def must_be_saved(self, value: fx.Node) -> fx.Node | None:
        """The node before which a value that crosses must be copied, because it is written to later.

        Raises:
            PlanError: it is written to between two nodes of the branch that read it.
        """
        writers = self.memory.writers(value)
        if not writers:
            return None
        readers = [n for n in self._readers() if any(self.standing_for(v) is value for v in self._tensors_of(n))]
        for writer in writers:
            if readers and readers[0] < writer < readers[-1]:
                raise _entangled(f"{_place(readers[-1])} reads what {_place(writer)} has written to")
        return readers[0] if readers else None

    def _readers(self) -> list[fx.Node]:
        return [node for node in self.graph.nodes if self.in_branch(node)]

    def _tensors_of(self, node: fx.Node) -> list[fx.Node]:
        """The tensors of the trunk among a node's operands."""
        return [
            value
            for value in node.all_input_nodes
            if value not in self.branch and value.op != "get_attr" and is_tensor(value)
        ]

    def _first_alike(self, value: fx.Node) -> fx.Node:
        """A part that is taken several times is one value."""
        if self.source_of_part(value) is None:
            return value
        source = _source(value)
        while source.target is torch.ops.aten.detach.default:
            source = _source(source)
        return self._alike.setdefault((source, str(value.target), f"{value.args[1:]} {value.kwargs}"), value)

    def _trains(self, node: fx.Node) -> bool:
        if node.op not in ("call_module", "get_attr"):
            return False
        target = str(node.target)
        return TUNERS in target.split(".") or any(weight.requires_grad for weight in weights(self._root, target))

    def _check_memory(self) -> None:
        for writer, owner in self.memory.written():
            if writer in self.branch and owner not in self.branch and owner.op != "get_attr":
                raise _entangled(f"{_place(writer)} depends on what trains, and has written to {_place(owner)}")


def weights(root: nn.Module, target: str) -> list[nn.Parameter]:
    """The parameters of the module, or the one parameter, at a path."""
    home, _, name = target.rpartition(".")
    owner = root.get_submodule(home)
    if name in owner._modules:
        return list(owner.get_submodule(name).parameters())
    parameter = owner._parameters.get(name)
    return [] if parameter is None else [parameter]


def _entangled(found: str) -> PlanError:
    return PlanError(
        "the trunk of a model cannot be told from what trains",
        found=found,
        fix="run the tuned model as a whole",
    )


def _source(node: fx.Node) -> fx.Node:
    return next(operand for operand in node.all_input_nodes if is_tensor(operand))


def _place(node: fx.Node) -> str:
    return ":".join(node.meta["origin"])
