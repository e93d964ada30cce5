"""Which node of one structure is which of another, whatever their names and their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import networkx as nx
from networkx.algorithms.isomorphism import DiGraphMatcher, categorical_edge_match, categorical_node_match

from fxtune.digests import digest_of_text
from fxtune.structure.structure import Operand, Structure


def isomorphism(
    one: Structure, other: Structure, digests: tuple[Mapping[int, str], Mapping[int, str]]
) -> dict[int, int] | None:
    """Node of one -> node of the other that computes the same of the same; None where the two differ.

    Nodes of the model's state are alike where their sizes are; where several fit, those of equal numbers are taken.

    Args:
        one: a structure.
        other: another.
        digests: of each: node of the state -> digest of its numbers, as far as known.
    """
    if one == other:
        return {i: i for i in range(len(one.nodes))}
    common = set(digests[0].values()) & set(digests[1].values())
    alike = [{i: digest for i, digest in known.items() if digest in common} for known in digests]
    found = _matched(one, other, colours(one, alike[0]), colours(other, alike[1]))
    return found or _matched(one, other, colours(one), colours(other))


def colours(structure: Structure, digests: Mapping[int, str] | None = None) -> list[str]:
    """A text for each node that tells all that leads to it, and all that it leads to.

    Two sweeps, one in each direction, tell two nodes of one depth apart that a search would take long for.
    """
    return _colours_behind(structure, colours_before(structure, digests or {}))


def colours_before(structure: Structure, digests: Mapping[int, str]) -> list[str]:
    """A text for each node that tells all that leads to it."""
    found: list[str] = []
    for i, node in enumerate(structure.nodes):
        read = _slots(node.operands, node.ordered, found)
        found.append(digest_of_text(f"{node.label} {digests.get(i, '')} {read}"))
    return found


def _colours_behind(structure: Structure, before: Sequence[str]) -> list[str]:
    readers: list[list[str]] = [[] for _ in structure.nodes]
    for position, operand in enumerate(structure.outputs):
        readers[operand.node].append(f"returned {position} {operand.how}")
    found = [""] * len(before)
    for i in range(len(before) - 1, -1, -1):
        node = structure.nodes[i]
        found[i] = digest_of_text(f"{before[i]} {sorted(readers[i])}")
        for position, operand in enumerate(node.operands):
            readers[operand.node].append(f"{found[i]} {position if node.ordered else ''} {operand.how}")
    return found


def _slots(operands: Sequence[Operand], ordered: bool, texts: Sequence[str]) -> list[str]:
    read = [f"{texts[operand.node]} {operand.how}" for operand in operands]
    return read if ordered else sorted(read)


def _matched(one: Structure, other: Structure, first: Sequence[str], second: Sequence[str]) -> dict[int, int] | None:
    if Counter(first) != Counter(second):
        return None
    matcher = DiGraphMatcher(
        _graph(one, first),
        _graph(other, second),
        node_match=categorical_node_match("colour", None),
        edge_match=categorical_edge_match("slots", None),
    )
    return dict(matcher.mapping) if matcher.is_isomorphic() else None


def _graph(structure: Structure, texts: Sequence[str]) -> nx.DiGraph[int]:
    graph: nx.DiGraph[int] = nx.DiGraph()
    slots: dict[tuple[int, int], list[str]] = {}
    for i, node in enumerate(structure.nodes):
        graph.add_node(i, colour=texts[i])
        for position, operand in enumerate(node.operands):
            slots.setdefault((operand.node, i), []).append(f"{position if node.ordered else ''} {operand.how}")
    for (source, reader), read in slots.items():
        graph.add_edge(source, reader, slots=sorted(read))
    return graph
