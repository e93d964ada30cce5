"""A structure as plain data: it goes into files, and comes from strangers' files."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fxtune.structure.numbers import Take

STATE = "state"
"""The op of a weight or buffer of the model's state_dict."""


class Operand(BaseModel):
    """What an operation reads.

    Attributes:
        node: index of the node whose result it is.
        how: which of its numbers, in what order and shape.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    node: Annotated[int, Field(ge=0)]
    how: str = ""


class Node(BaseModel):
    """An operation, or what goes into the model.

    Attributes:
        op: canonical name of the operation; `input`, `constant` or `state` for what no operation makes.
        name: module path of an operation; the name of an input, or of a tensor of the model's state.
        shape: sizes in the example; of a linear map tokens x channels.
        attributes: its arguments that are no tensors, as text.
        eps: its epsilon, which is no part of the structure.
        operands: what it reads.
        ordered: whether the order of these counts.
        take: of a tensor of the state the numbers that are read, all when left out; of a linear map its rows among
            those that are computed together, likewise.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    op: str
    name: str = ""
    shape: tuple[int, ...] = ()
    attributes: str = ""
    eps: float | None = None
    operands: tuple[Operand, ...] = ()
    ordered: bool = True
    take: Take | None = None

    @property
    def label(self) -> str:
        """What it computes, whatever of."""
        return f"{self.op} {self.shape} {self.attributes} {'in order' if self.ordered else ''}"


class Structure(BaseModel):
    """All that leads to what a model returns: operations after what they read.

    Attributes:
        nodes: the operations.
        outputs: what is returned, in order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    nodes: tuple[Node, ...]
    outputs: tuple[Operand, ...]

    @model_validator(mode="after")
    def _forward(self) -> Self:
        for i, node in enumerate(self.nodes):
            if any(operand.node >= i for operand in node.operands):
                raise ValueError(f"node {i} reads what is computed after it")
        if any(operand.node >= len(self.nodes) for operand in self.outputs):
            raise ValueError("an output that is no node")
        return self

    def line(self, index: int) -> str:
        """A node, as people read it."""
        node = self.nodes[index]
        read = ", ".join(f"%{operand.node} {operand.how}".strip() for operand in node.operands)
        given = f"{node.attributes}{', ' * bool(node.attributes and read)}{read}"
        where = f" at {node.name}" if node.name else ""
        return f"%{index} = {node.op}({given}) -> {node.shape}{where}"
