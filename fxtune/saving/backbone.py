"""What a backbone is: what it computes, and with which weights."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from fxtune.digests import digest_of
from fxtune.errors import CheckpointError
from fxtune.saving.standing import Standing
from fxtune.splitting import flatten, lines_of
from fxtune.structure import STATE, Node, Structure, difference
from fxtune.tracing import Region
from fxtune.wrapped import is_wrapped


class Backbone(BaseModel):
    """A model without its numbers, and a digest of each of these.

    Attributes:
        computing: what each node of its flat graph computes, of which others, with which modules.
        weights: parameter and buffer -> digest.
        structure: what it computes whatever its names, for models that are written down otherwise.
        parts: node of the structure -> digest of its numbers, where it is a part of a tensor of the state.
        tuners: module path of each tuner -> where it stands in the structure.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    computing: tuple[str, ...]
    weights: dict[str, str]
    structure: Structure
    parts: dict[int, str]
    tuners: dict[str, Standing]

    @model_validator(mode="after")
    def _nodes_exist(self) -> Self:
        many = len(self.structure.nodes)
        named = [*self.parts, *(node for standing in self.tuners.values() for node in standing.nodes)]
        if any(not 0 <= node < many for node in named):
            raise ValueError(f"expected nodes below {many}")
        return self

    def digests(self) -> dict[int, str]:
        """Node of the structure -> digest of its numbers, where these are of the state."""
        return digests_by_node(self.structure, self.weights, self.parts)


def computing_of(root: Region) -> tuple[str, ...]:
    """What a captured model computes, node by node."""
    return tuple(lines_of(flatten(root), root))


def weights_of(model: nn.Module) -> dict[str, str]:
    """A digest of every weight and buffer of a model's state_dict."""
    return {name: digest_of(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}


def parts_of(model: nn.Module, structure: Structure) -> dict[int, str]:
    """A digest of every part of a tensor that the structure names; of a new head, which the model lacks, none."""
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    found = {}
    for i, node in enumerate(structure.nodes):
        tensor = state.get(node.name) if node.op == STATE and node.take is not None else None
        if tensor is not None:
            numbers = numbers_of(tensor, node)
            found.update({} if numbers is None else {i: digest_of(numbers)})
    return found


def numbers_of(tensor: Tensor, node: Node) -> Tensor | None:
    """The numbers that a node of the structure names, of a tensor; None where the tensor has no such places,
    or wraps others: then it is known as a whole alone."""
    if node.take is None:
        return tensor.detach() if tuple(tensor.shape) == node.shape else None
    if node.take.size != math.prod(node.shape) or is_wrapped(tensor):
        return None
    places = node.take.places().to(tensor.device)
    if len(places) and not 0 <= int(places.min()) <= int(places.max()) < tensor.numel():
        return None
    return tensor.detach().flatten()[places].view(node.shape)


def digests_by_node(structure: Structure, weights: Mapping[str, str], parts: Mapping[int, str]) -> dict[int, str]:
    """Node of the state -> digest of its numbers."""
    named = {
        i: weights[node.name]
        for i, node in enumerate(structure.nodes)
        if node.op == STATE and node.take is None and node.name in weights
    }
    return {**named, **parts}


def other_structure(there: Structure, here: Structure, where: str) -> CheckpointError:
    """What to raise where a checkpoint was tuned on a model of another structure: the first node that differs.

    Args:
        there: the structure of the checkpoint's backbone.
        here: the model's.
        where: the checkpoint's place.
    """
    old, new = (_short(line) for line in difference(there, here))
    return CheckpointError(
        "these tuners belong to a model of another structure",
        found=f"the first difference: they were tuned on `{old}`; this model has `{new}`",
        where=where,
        fix="load them on the architecture that they were tuned on, with example_inputs of the same sizes",
    )


def changed_weights(there: Mapping[str, str], here: Mapping[str, str], replaced: Container[str]) -> list[str]:
    """The weights whose numbers are not those of the checkpoint's backbone, those aside that it replaces."""
    return [name for name, digest in here.items() if name not in replaced and there.get(name) != digest]


def _short(line: str) -> str:
    plain = " ".join(line.split())
    return plain if len(plain) <= 200 else f"{plain[:200]}..."
