"""Finding every site of a kind, and what nearly was one."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from fxtune.collecting import collector_aside
from fxtune.matching.attention import read_attention
from fxtune.matching.edges import Edges
from fxtune.matching.ends import Ends
from fxtune.matching.matcher import Matcher, Miss, Solution
from fxtune.matching.operation import is_operation, only_operation, read_operation
from fxtune.matching.site import Attention, NearMiss, Site
from fxtune.patterns import Library, Pattern
from fxtune.view import Tap, View

BLOCK = "block"
"""The pattern whose sites number the model's Blocks."""

NEAR_MISSES = 5
"""How many near misses are kept for each kind."""

NEAR = 3
"""From how many matched operations on a miss is near: any linear map after a norm is two of an attention's."""


@dataclass(frozen=True)
class Match:
    """One match of a pattern, as the view has it."""

    node: int
    solution: Solution


class Sites:
    """The sites of a view, kind by kind, found when first asked for.

    Two sites of one kind never overlap: matches are taken from the end of the model to its beginning, and of two that
    overlap the one that ends later counts.
    """

    def __init__(self, view: View, library: Library) -> None:
        self.view, self.library = view, library
        self._matcher = Matcher(view, library)
        self._edges, self._ends = Edges(view), Ends(view)
        self._found: dict[str, tuple[list[Match], list[NearMiss]]] = {}
        self._calls: dict[tuple[str, ...], list[Site]] = {}
        self._sites: dict[tuple[str, ...], list[Site]] = {}

    def of(self, kind: str, *, on: Sequence[str] = (), where: str | None = None) -> list[Site]:
        """All sites of a kind in the order of computation.

        Args:
            kind: a pattern's name.
            on: names of lines of the pattern, or of patterns inside of it: the sites are then these operations, one by
                one, in place of the whole units. A unit whose alternative lacks a name has no site of that name.
            where: where `kind` and `on` were written, for errors.

        Raises:
            PatternError: no pattern has that name, or it has no line that is called so.
        """
        key = (kind, *on)
        if key not in self._sites:
            self._sites[key] = self._once_each(self.calls(kind, on=on, where=where))
        return self._sites[key]

    def calls(self, kind: str, *, on: Sequence[str] = (), where: str | None = None) -> list[Site]:
        """As `of`, with a site for each call of a layer that is called several times."""
        key = (kind, *on)
        if key not in self._calls:
            matches, _ = self._matches(kind, where)
            if on:
                lines = [self.library.line(kind, name, where=where) for name in on]
                found = [site for match in matches for site in self._operations(kind, lines, match)]
            else:
                found = [self._site(kind, i, match) for i, match in enumerate(matches)]
            self._calls[key] = found
        return self._calls[key]

    def near_misses(self, kind: str) -> list[NearMiss]:
        """Where the kind nearly matched, the nearest first."""
        return self._matches(kind, None)[1]

    def in_blocks(self) -> Collection[int]:
        """Ids of the operations that lie in a Block."""
        return self._block_of.keys()

    # ---- matches -----------------------------------------------------------------------------------------------------

    def _matches(self, kind: str, where: str | None) -> tuple[list[Match], list[NearMiss]]:
        if kind not in self._found:
            pattern = self.library.get(kind, where=where)
            with collector_aside():
                self._found[kind] = self._search(kind, pattern)
        return self._found[kind]

    def _search(self, kind: str, pattern: Pattern) -> tuple[list[Match], list[NearMiss]]:
        found: list[Match] = []
        misses: dict[int, Miss] = {}
        claimed: set[int] = set()
        for node in self._candidates(self._matcher.roots(pattern)):
            if node in claimed:
                continue
            solutions, miss = self._matcher.match(pattern, node)
            if solutions:
                found.append(Match(node, solutions[0]))
                claimed |= solutions[0].nodes
            elif miss is not None and miss.score >= NEAR:
                misses[node] = miss
        return found[::-1], self._nearest(kind, misses, claimed)

    def _candidates(self, roots: frozenset[str] | None) -> list[int]:
        if roots is None:
            return sorted(self.view.graph, reverse=True)
        return sorted((node for op in roots for node in self.view.by_op.get(op, ())), reverse=True)

    def _nearest(self, kind: str, misses: dict[int, Miss], claimed: set[int]) -> list[NearMiss]:
        """The furthest failures. What lies in a site of the kind, or in a Block, is known to be something else."""
        known = claimed if kind == BLOCK else claimed | self._block_of.keys()
        kept: dict[int, Miss] = {}
        for miss in sorted((m for node, m in misses.items() if node not in known), key=lambda m: (-m.score, m.node)):
            if miss.node not in claimed:
                kept.setdefault(miss.node, miss)
        nearest = list(kept.values())[:NEAR_MISSES]
        return [NearMiss(kind, m.score, self._place(m.node), self._reason(m), m.where) for m in nearest]

    def _reason(self, miss: Miss) -> str:
        return miss.reason if miss.other is None else f"{miss.reason}, which is {self._place(miss.other)}"

    def _place(self, node: int) -> str:
        return self.view.values[node].place()

    # ---- sites -------------------------------------------------------------------------------------------------------

    def _site(self, kind: str, index: int, match: Match) -> Site:
        pattern = self.library.patterns[kind]
        names = match.solution.names
        only = only_operation(self.view, match.solution)
        if only is not None:
            return self._operation(kind, only, match, names[pattern.inputs[0]].value)
        path = self._path(match.solution)
        output = self._edges.end(names[pattern.output].value if pattern.output in names else match.node, path)
        block = self._block_of.get(match.node) if kind != BLOCK else index
        attention = read_attention(self.view, match.solution, pattern.output)
        if attention is not None:
            attention = replace(attention, context=self._edges.begin(attention.context, path))
        return Site(
            kind=kind,
            variant=match.solution.variant,
            index=index,
            block=block,
            stage=self._stages[block] if block is not None else None,
            path=path,
            input=self._edges.port(self._edges.begin(names[pattern.inputs[0]].value, path), output),
            output=self._edges.port(output, output),
            heads=attention.heads if attention else self._heads_in.get(block, 1),
            attention=attention,
            names={name: bound.value for name, bound in names.items()},
        )

    def _operations(self, kind: str, lines: Sequence[str], match: Match) -> list[Site]:
        """A site for each operation of a match that bears one of the names, in the order of computation."""
        names = match.solution.names
        nodes: dict[int, list[str]] = {}
        for line in lines:
            if line in names and is_operation(self.view, names[line].node):
                nodes.setdefault(names[line].node, []).append(line.rpartition(".")[2])
        return [
            self._operation(f"{kind}.{'+'.join(dict.fromkeys(words))}", node, match, self.view.uses(node)[0].value)
            for node, words in sorted(nodes.items())
        ]

    def _operation(self, kind: str, node: int, match: Match, reads: int) -> Site:
        """The site of one operation in a match; `reads` is the value that it is given."""
        path = self.view.values[node].module
        taken, gives = self._ends.of(node, reads, path)
        block = self._block_of.get(node)
        whole = read_attention(self.view, match.solution)
        return Site(
            kind=kind,
            variant=match.solution.variant,
            index=0,
            block=block,
            stage=self._stages[block] if block is not None else None,
            path=path,
            input=taken,
            output=gives,
            heads=whole.heads if whole else self._heads_in.get(block, 1),
            attention=None,
            names={name: bound.value for name, bound in match.solution.names.items()},
            operation=read_operation(self.view, node),
        )

    def _once_each(self, sites: list[Site]) -> list[Site]:
        """A layer that is called several times is one site."""
        first: dict[tuple[Tap, ...], Site] = {}
        for site in sites:
            key = site.output.taps[:1]
            known = first.get(key)
            first[key] = replace(known, calls=known.calls + 1) if known and key else replace(site, index=len(first))
        return list(first.values())

    def _path(self, solution: Solution) -> str:
        modules = [self.view.values[node].module.split(".") for node in solution.nodes if self.view.op(node) != "param"]
        common = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*modules, strict=False))
        return ".".join(parts[0] for parts in common)

    # ---- blocks ------------------------------------------------------------------------------------------------------

    @cached_property
    def _blocks(self) -> list[Match]:
        return self._matches(BLOCK, None)[0]

    @cached_property
    def _block_of(self) -> dict[int, int]:
        return {node: i for i, match in enumerate(self._blocks) for node in match.solution.nodes}

    @cached_property
    def _stages(self) -> list[int]:
        """A stage ends where the width or the resolution changes."""
        stages: list[int] = []
        last: tuple[object, ...] | None = None
        for match in self._blocks:
            port = self._edges.port(match.node, match.node)
            sizes = (port.width, port.positions)
            stages.append(stages[-1] + (sizes != last) if stages else 0)
            last = sizes
        return stages

    @cached_property
    def _heads_in(self) -> dict[int | None, int]:
        heads: dict[int | None, int] = {}
        for match in self._matches("mha", None)[0]:
            found: Attention | None = read_attention(self.view, match.solution)
            if found is not None:
                heads.setdefault(self._block_of.get(match.node), found.heads)
        return heads
