"""Matching one pattern against the view by backtracking, with the furthest failure kept.

A match starts at the operation that gives a pattern's output and walks against the dataflow. Results of a named
pattern at an operation are kept, so a pattern that is part of many others is matched once a place; a run (`op*`)
visits a bounded number of operations. Time is therefore linear in the size of the model.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fxtune.patterns import (
    Anything,
    Attribute,
    Body,
    Call,
    Condition,
    Expr,
    Library,
    Line,
    Name,
    Pattern,
    Term,
)
from fxtune.view import Use, View
from fxtune.vocabulary import COMMUTATIVE

RUN_LIMIT = 64
"""Operations that one run (`op*`) visits at most."""

SOLUTION_LIMIT = 64
"""Choices of input values for which one pattern may match at one operation; more of them are not looked for."""

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Bound:
    """What a name stands for: an operation, and the value that is read from it."""

    node: int
    value: int


@dataclass(frozen=True, slots=True)
class State:
    """A partial match.

    Attributes:
        names: what is bound so far.
        nodes: the operations that matched.
        line: those of the line that is being matched.
        spans: those of each line that matched.
    """

    names: Mapping[str, Bound] = field(default_factory=dict)
    nodes: frozenset[int] = frozenset()
    line: frozenset[int] = frozenset()
    spans: Mapping[str, frozenset[int]] = field(default_factory=dict)

    def bind(self, name: str, bound: Bound) -> State:
        return State({**self.names, name: bound}, self.nodes, self.line, self.spans)

    def visit(self, nodes: Iterable[int]) -> State:
        return State(self.names, self.nodes.union(nodes), self.line.union(nodes), self.spans)

    def begin(self) -> State:
        """At the start of a line."""
        return State(self.names, self.nodes, frozenset(), self.spans)

    def end(self, name: str, outer: State) -> State:
        """At the end of a line, back in the line `outer` that reads it."""
        return State(self.names, self.nodes, outer.line | self.line, {**self.spans, name: self.line})


@dataclass(frozen=True, slots=True)
class Solution:
    """A whole match: the alternative, its names (those of inner patterns dotted), and its operations."""

    variant: str
    names: Mapping[str, Bound]
    nodes: frozenset[int]


@dataclass(frozen=True, slots=True)
class Miss:
    """The furthest that a match came: how many operations matched, where it failed, and why.

    `other` is the operation that was expected instead, where one was. Thousands of failures are noted for each that is
    told, so nothing is put into words here.
    """

    score: int
    node: int
    reason: str
    where: str
    other: int | None = None


class Matcher:
    """Matches patterns of a library against one view."""

    def __init__(self, view: View, library: Library) -> None:
        self.view, self.library = view, library
        self._kept: dict[tuple[str, int], tuple[tuple[Solution, ...], Miss | None]] = {}
        self._furthest: Miss | None = None

    def match(self, pattern: Pattern, node: int) -> tuple[tuple[Solution, ...], Miss | None]:
        """The ways in which `pattern` gives the result of `node`, and where there is none the furthest failure."""
        key = (pattern.name, node)
        if key not in self._kept:
            outer, self._furthest = self._furthest, None
            every = itertools.chain.from_iterable(self._body(pattern, body, node) for body in pattern.bodies)
            # Of the matches that read the same values the first one counts: alternatives are ordered.
            found: dict[tuple[int, ...], Solution] = {}
            for solution in every:
                found.setdefault(tuple(solution.names[name].node for name in pattern.inputs), solution)
                if len(found) == SOLUTION_LIMIT:
                    break
            self._kept[key] = (tuple(found.values()), self._furthest)
            self._furthest = outer
        return self._kept[key]

    def roots(self, pattern: Pattern) -> frozenset[str] | None:
        """The operators with which a match of `pattern` can end; None for any."""
        found: set[str] = set()
        for body in pattern.bodies:
            ops = self._roots(Name(pattern.output), body)
            if ops is None:
                return None
            found |= ops
        return frozenset(found)

    def _roots(self, expr: Expr, body: Body) -> frozenset[str] | None:
        if isinstance(expr, Name) and expr.id in body.lines:
            return self._roots(body.lines[expr.id].expr, body)
        if not isinstance(expr, Call):
            return None
        ops = self.library.ops_of(expr.op)
        own = self.roots(self.library.patterns[expr.op]) if ops is None else ops
        rest = self._roots(expr.args[0], body) if expr.quantity else frozenset()
        return None if own is None or rest is None else own | rest

    # ---- one alternative ---------------------------------------------------------------------------------------------

    def _body(self, pattern: Pattern, body: Body, node: int) -> Iterator[Solution]:
        line = body.lines[pattern.output]
        start = Use(node, node)
        for state in self._line(line, start, State(), body):
            inside = state.nodes
            for whole in self._context(body.context, state, body):
                if self._holds(pattern, body, whole):
                    yield Solution(body.variant, whole.names, inside)
                    break

    def _context(self, lines: tuple[Line, ...], state: State, body: Body) -> Iterator[State]:
        """Lines around the unit: each must match at an operation that reads a value bound already."""
        pending = [line for line in lines if line.name not in state.names]
        if not pending:
            yield state
            return
        line = next((item for item in pending if self._anchor(item, state) is not None), None)
        if line is None:
            self._fail(state, max(state.nodes), f"`{pending[0].name}` reads no value of the unit", pending[0].where)
            return
        anchor = self._anchor(line, state)
        rest = tuple(item for item in pending if item is not line)
        assert anchor is not None
        readers = self.view.consumers(anchor)
        for reader in readers:
            for matched in self._line(line, Use(reader, reader), state, body):
                yield from self._context(rest, matched, body)
        if not readers:
            self._fail(state, anchor, "nothing reads the result", line.where)

    def _anchor(self, line: Line, state: State) -> int | None:
        if not isinstance(line.expr, Call):
            return None
        bound = [state.names[a.id].node for a in line.expr.args if isinstance(a, Name) and a.id in state.names]
        return max(bound) if bound else None

    def _line(self, line: Line, use: Use, state: State, body: Body) -> Iterator[State]:
        for matched in self._expr(line.expr, use, state.begin(), body, line.name):
            bound = matched.end(line.name, state).bind(line.name, Bound(use.source, use.value))
            if self._distinct(line.name, bound, body):
                yield bound

    def _distinct(self, name: str, state: State, body: Body) -> bool:
        for group in body.distinct:
            if name in group:
                nodes = [state.names[n].node for n in group if n in state.names]
                if len(set(nodes)) < len(nodes):
                    return False
        return True

    # ---- expressions -------------------------------------------------------------------------------------------------

    def _expr(self, expr: Expr, use: Use, state: State, body: Body, label: str) -> Iterator[State]:
        if isinstance(expr, Anything):
            yield state
        elif isinstance(expr, Name):
            yield from self._name(expr.id, use, state, body)
        elif expr.quantity == "*":
            yield from self._run(expr, use, state, body, label)
        else:
            yield from self._call(expr, use, state, body, label)
            if expr.quantity == "?":
                yield from self._expr(expr.args[0], use, state, body, label)

    def _name(self, name: str, use: Use, state: State, body: Body) -> Iterator[State]:
        bound = state.names.get(name)
        if bound is None:
            if name in body.lines:
                yield from self._line(body.lines[name], use, state, body)
            else:
                yield state.bind(name, Bound(use.source, use.value))
        elif bound.node == use.source:
            yield state
        else:
            self._fail(state, use.source, f"expected the same value as `{name}`", "", bound.node)

    def _call(self, call: Call, use: Use, state: State, body: Body, label: str) -> Iterator[State]:
        ops = self.library.ops_of(call.op)
        if ops is None:
            yield from self._inner(call, use, state, body, label)
        elif self.view.op(use.source) in ops:
            uses = self.view.uses(use.source)
            if len(uses) < len(call.args):
                self._fail(state, use.source, f"`{call.op}` reads {len(uses)} values, not {len(call.args)}", call.where)
                return
            for order in self._orders(self.view.op(use.source), uses, len(call.args)):
                yield from self._args(call.args, order, state.visit((use.source,)), body)
        elif not call.quantity:
            self._fail(state, use.source, f"expected `{call.op}`", call.where)

    @staticmethod
    def _orders(op: str, uses: tuple[Use, ...], count: int) -> Iterator[tuple[Use, ...]]:
        yield uses
        if op in COMMUTATIVE and len(uses) == 2 and count:
            yield (uses[1], uses[0])

    def _args(self, args: tuple[Expr, ...], uses: tuple[Use, ...], state: State, body: Body) -> Iterator[State]:
        if not args:
            yield state
            return
        for matched in self._expr(args[0], uses[0], state, body, ""):
            yield from self._args(args[1:], uses[1:], matched, body)

    def _inner(self, call: Call, use: Use, state: State, body: Body, label: str) -> Iterator[State]:
        """Another pattern at this place; its names stay reachable under the name of the line."""
        pattern = self.library.patterns[call.op]
        solutions, miss = self.match(pattern, use.source)
        if not solutions and miss is not None and not call.quantity:
            self._note(replace(miss, score=miss.score + len(state.nodes)))
        for solution in solutions:
            names = dict(state.names)
            if label:
                names |= {f"{label}.{name}": bound for name, bound in solution.names.items()}
            inside = State(names, state.nodes, state.line, state.spans).visit(solution.nodes)
            taken = [solution.names[name] for name in pattern.inputs[: len(call.args)]]
            uses = tuple(Use(bound.node, bound.value) for bound in taken)
            yield from self._args(call.args, uses, inside, body)

    def _run(self, call: Call, use: Use, state: State, body: Body, label: str) -> Iterator[State]:
        """Breadth-first against the dataflow: the nearest place where the operand matches comes first."""
        ops = self.library.ops_of(call.op)
        queue: list[tuple[Use, State]] = [(use, state)]
        seen = {use.source}
        while queue:
            here, sofar = queue.pop(0)
            yield from self._expr(call.args[0], here, sofar, body, label)
            for nodes, operand in self._steps(call.op, ops, here.source):
                if operand.source not in seen and len(seen) < RUN_LIMIT:
                    seen.add(operand.source)
                    queue.append((operand, sofar.visit(nodes)))

    def _steps(self, name: str, ops: frozenset[str] | None, node: int) -> Iterator[tuple[Iterable[int], Use]]:
        """One step of a run over a node: from an operator to each operand, from a pattern to its first input."""
        if ops is not None:
            yield from (((node,), use) for use in self.view.uses(node) if self.view.op(node) in ops)
            return
        pattern = self.library.patterns[name]
        for solution in self.match(pattern, node)[0]:
            bound = solution.names[pattern.inputs[0]]
            yield solution.nodes, Use(bound.node, bound.value)

    # ---- conditions --------------------------------------------------------------------------------------------------

    def _holds(self, pattern: Pattern, body: Body, state: State) -> bool:
        for condition in pattern.conditions:
            left, right = self._term(condition.left, state), self._term(condition.right, state)
            if not _compare(condition, left, right):
                text = f"{condition.text} does not hold: {left} and {right}"
                self._fail(state, self._conditioned(condition, state), text, condition.where)
                return False
        return self._apart(pattern, state) and self._shapes_hold(pattern, state)

    def _apart(self, pattern: Pattern, state: State) -> bool:
        for one, other in itertools.combinations(pattern.apart, 2):
            shared = state.spans.get(one, frozenset()) & state.spans.get(other, frozenset())
            if shared:
                self._fail(state, max(shared), f"`{one}` and `{other}` share this operation", pattern.where)
                return False
        return True

    def _conditioned(self, condition: Condition, state: State) -> int:
        terms = (condition.left, condition.right)
        nodes = [state.names[t.name].node for t in terms if isinstance(t, Attribute) and t.name in state.names]
        return nodes[0] if nodes else max(state.nodes)

    def _term(self, term: Term, state: State) -> Any:
        if not isinstance(term, Attribute):
            return term
        bound = state.names.get(term.name)
        if bound is None:
            return None
        if term.key == "width":
            return self.view.width(bound.value)
        if term.key == "tokens":
            return self.view.tokens(bound.value)
        if term.key == "rank":
            return len(self.view.values[bound.value].shape)
        return self.view.attrs(bound.node).get(term.key)

    def _shapes_hold(self, pattern: Pattern, state: State) -> bool:
        sizes: dict[str, Any] = {}
        for name, wanted in pattern.shapes.items():
            bound = state.names.get(name)
            if bound is None:
                continue
            shape = self.view.values[bound.value].shape
            if not _unify(list(wanted), list(shape), sizes):
                known = ", ".join(f"{k}={v}" for k, v in sizes.items())
                text = f"`{name}` has shape {list(map(str, shape))}, not {list(wanted)} with {known or 'any sizes'}"
                self._fail(state, bound.node, text, pattern.where)
                return False
        return True

    # ---- failures ----------------------------------------------------------------------------------------------------

    def _fail(self, state: State, node: int, reason: str, where: str, other: int | None = None) -> None:
        if self._furthest is None or len(state.nodes) > self._furthest.score:
            self._furthest = Miss(len(state.nodes), node, reason, where, other)

    def _note(self, miss: Miss) -> None:
        if self._furthest is None or miss.score > self._furthest.score:
            self._furthest = miss


def _compare(condition: Condition, left: Any, right: Any) -> bool:
    if condition.comparison in ("==", "!="):
        # Symbolic sizes are compared as they are written: no guard is put on them.
        same = (
            left is not None and right is not None and (str(left) == str(right) or left is right or _equal(left, right))
        )
        return same == (condition.comparison == "==")
    try:
        return _COMPARE[condition.comparison](int(left), int(right))
    except (TypeError, ValueError):
        return False


def _equal(left: Any, right: Any) -> bool:
    return isinstance(left, int | float) and isinstance(right, int | float) and left == right


def _unify(wanted: list[str | int], shape: list[Any], sizes: dict[str, Any]) -> bool:
    """Named dimensions against sizes; ``...`` stands for any run of them."""
    if "..." in wanted:
        at = wanted.index("...")
        head, tail = wanted[:at], wanted[at + 1 :]
        if len(shape) < len(head) + len(tail):
            return False
        pairs = [*zip(head, shape, strict=False), *zip(tail, shape[len(shape) - len(tail) :], strict=True)]
    elif len(wanted) != len(shape):
        return False
    else:
        pairs = list(zip(wanted, shape, strict=True))
    return all(str(sizes.setdefault(w, s)) == str(s) if isinstance(w, str) else str(w) == str(s) for w, s in pairs)
