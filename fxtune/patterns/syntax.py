"""What a pattern says, as small immutable objects; `fxtune.patterns.parse` makes them from text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Name:
    """A value by name: one that a line defines, or one that the pattern takes in. Used twice, it is the same value
    twice."""

    id: str


@dataclass(frozen=True)
class Anything:
    """``_``: any value at all."""


@dataclass(frozen=True)
class Call:
    """``op(a, b)``, ``op?(a)`` (there or not) or ``op*(a)`` (a run of such operations, each reading the one before).

    `op` is an operator of the view, a set of them, or another pattern. Operands that the pattern does not write down
    are free.
    """

    op: str
    args: tuple[Expr, ...]
    quantity: str = ""
    where: str = ""


Expr = Name | Anything | Call


@dataclass(frozen=True)
class Line:
    """``name = expr``: one value of the dataflow."""

    name: str
    expr: Expr
    where: str


@dataclass(frozen=True)
class Attribute:
    """``h.width``: a fact about a named value: width, rank, or a literal argument of its operator."""

    name: str
    key: str


Term = Attribute | float | str | bool


@dataclass(frozen=True)
class Condition:
    """``x.width == y.width``: two terms and a comparison."""

    left: Term
    comparison: str
    right: Term
    text: str
    where: str


@dataclass(frozen=True)
class Body:
    """One alternative of a pattern: its lines, by name; those that the output needs, and those that surround it."""

    variant: str
    lines: Mapping[str, Line]
    context: tuple[Line, ...]
    distinct: tuple[frozenset[str], ...] = ()


@dataclass(frozen=True)
class Pattern:
    """A unit of computation, from its input values to its output value.

    Attributes:
        name: how rules and other patterns call it.
        about: what it is, for people.
        inputs: names of the values that it takes in; the first is what a tuner at this unit reads.
        output: name of the value that it gives.
        bodies: its alternatives; the first that matches counts.
        shapes: sizes by named dimensions; one name, one size.
        conditions: what must hold between the named values.
        apart: names of lines that may share no operation.
        free: further values that its lines may name.
    """

    name: str
    about: str
    inputs: tuple[str, ...]
    output: str
    bodies: tuple[Body, ...]
    shapes: Mapping[str, tuple[str | int, ...]] = field(default_factory=dict)
    conditions: tuple[Condition, ...] = ()
    apart: tuple[str, ...] = ()
    free: tuple[str, ...] = ()
    where: str = ""
