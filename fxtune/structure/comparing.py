"""What two structures differ in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fxtune.structure.isomorphism import colours, colours_before
from fxtune.structure.structure import STATE, Structure


@dataclass(frozen=True)
class OtherEps:
    """Two operations that differ in epsilon alone: the name and the number of each."""

    name: str
    eps: float | None
    other_name: str
    other_eps: float | None


def difference(one: Structure, other: Structure) -> tuple[str, str]:
    """The first node, in the order of computation, that has none like it in the other, of either structure, as text."""
    for kind in (lambda structure: colours_before(structure, {}), colours):
        first, second = kind(one), kind(other)
        if Counter(first) != Counter(second):
            return _alone(one, first, second), _alone(other, second, first)
    return "the same operations", "them joined otherwise"


def _alone(structure: Structure, own: Sequence[str], others: Sequence[str]) -> str:
    """The first operation without a counterpart; a weight only where all operations have one."""
    left = Counter(others)
    alone = []
    for i, colour in enumerate(own):
        if left[colour] == 0:
            alone.append(i)
        left[colour] -= 1
    first = next((i for i in alone if structure.nodes[i].op != STATE), next(iter(alone), None))
    return "nothing more" if first is None else structure.line(first)


def other_eps(one: Structure, other: Structure, mapping: Mapping[int, int]) -> OtherEps | None:
    """The first operation whose epsilon is another; None where all are equal."""
    for i, node in enumerate(one.nodes):
        counterpart = other.nodes[mapping[i]]
        if node.eps != counterpart.eps:
            return OtherEps(node.name, node.eps, counterpart.name, counterpart.eps)
    return None
