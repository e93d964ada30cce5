"""The grammar of dataflow text.

line      = name {"," name} "=" expr
expr      = "_" | name | op ["?" | "*"] "(" [expr {"," expr}] ")"
condition = term ("==" | "!=" | "<=" | ">=" | "<" | ">") term
term      = number | "true" | "false" | name "." name
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from fxtune.errors import PatternError
from fxtune.patterns.syntax import Anything, Attribute, Body, Call, Condition, Expr, Line, Name, Term

_TOKEN = re.compile(r"\s*(?:(?P<name>[A-Za-z_]\w*)|(?P<number>-?\d+(?:\.\d+)?)|(?P<sign>==|!=|<=|>=|[=(),.?*<>]))")
_COMPARISONS = ("==", "!=", "<=", ">=", "<", ">")


class _Tokens:
    """The tokens of one line, and where it stands."""

    def __init__(self, text: str, where: str) -> None:
        self.text, self.where = text, where
        self.items = list(self._split(text))
        self.next = 0

    def _split(self, text: str) -> Iterator[tuple[str, str]]:
        position, end = 0, len(text.rstrip())
        while position < end:
            match = _TOKEN.match(text, position)
            if match is None or match.lastgroup is None:
                raise self.error(
                    f"the character {text[position:].lstrip()[:1]!r}", "a name, a number or one of ( ) , = ? * . _"
                )
            yield match.lastgroup, match[match.lastgroup]
            position = match.end()

    def error(self, found: str, expected: str) -> PatternError:
        return PatternError(
            f"cannot read the dataflow line `{self.text.strip()}`",
            found=f"{found}; expected {expected}",
            where=self.where,
        )

    def peek(self) -> str:
        return self.items[self.next][1] if self.next < len(self.items) else ""

    def take(self, kind: str, expected: str) -> str:
        if self.next >= len(self.items):
            raise self.error("the end of the line", expected)
        found, text = self.items[self.next]
        if found != kind:
            raise self.error(repr(text), expected)
        self.next += 1
        return text

    def sign(self, sign: str) -> None:
        if self.peek() != sign:
            raise self.error(repr(self.peek()) if self.peek() else "the end of the line", repr(sign))
        self.next += 1

    def finish(self) -> None:
        if self.next < len(self.items):
            raise self.error(repr(self.peek()), "the end of the line")


def _expr(tokens: _Tokens) -> Expr:
    name = tokens.take("name", "a value or an operator")
    if name == "_":
        return Anything()
    quantity = ""
    if tokens.peek() in ("?", "*"):
        quantity = tokens.peek()
        tokens.next += 1
    if tokens.peek() != "(":
        if quantity:
            raise tokens.error(f"{name}{quantity} without operands", f"{name}{quantity}(...)")
        return Name(name)
    tokens.sign("(")
    args: list[Expr] = []
    while tokens.peek() != ")":
        if args and tokens.peek() != ",":
            raise tokens.error(repr(tokens.peek()) if tokens.peek() else "the end of the line", "',' or ')'")
        if args:
            tokens.sign(",")
        args.append(_expr(tokens))
    tokens.sign(")")
    if quantity and not args:
        raise tokens.error(f"{name}{quantity}()", f"an operand: what stands there without {name}")
    return Call(name, tuple(args), quantity, tokens.where)


def parse_body(variant: str, text: str, output: str, places: Iterator[str]) -> Body:
    """The lines of one alternative.

    Args:
        variant: its name.
        text: the dataflow, a line a value; ``#`` begins a comment.
        output: the name of the value that the pattern gives.
        places: where each line of the text stands, for errors.
    """
    lines: dict[str, Line] = {}
    distinct: list[frozenset[str]] = []
    first = ""
    for raw, where in zip(text.splitlines(), places, strict=False):
        first = first or where
        code = raw.partition("#")[0]
        if not code.strip():
            continue
        names, expr = _line(code, where)
        if len(names) > 1:
            distinct.append(frozenset(names))
        for name in names:
            if name in lines:
                raise PatternError(f"`{name}` is defined twice", found=f"first at {lines[name].where}", where=where)
            lines[name] = Line(name, expr, where)
    if output not in lines:
        found = f"the lines define {', '.join(lines) or 'nothing'}"
        raise PatternError(f"no line defines the output `{output}`", found=found, where=first, fix="name it in `out:`")
    needed = _needed(lines, output, set())
    context = tuple(line for name, line in lines.items() if name not in needed)
    return Body(variant, lines, context, tuple(distinct))


def _line(code: str, where: str) -> tuple[list[str], Expr]:
    tokens = _Tokens(code, where)
    names = [tokens.take("name", "a name")]
    while tokens.peek() == ",":
        tokens.sign(",")
        names.append(tokens.take("name", "a name"))
    tokens.sign("=")
    expr = _expr(tokens)
    tokens.finish()
    return names, expr


def names_in(expr: Expr) -> Iterator[str]:
    """The value names in an expression, in order."""
    if isinstance(expr, Name):
        yield expr.id
    elif isinstance(expr, Call):
        for arg in expr.args:
            yield from names_in(arg)


def calls_in(expr: Expr) -> Iterator[Call]:
    """The calls in an expression, outermost first."""
    if isinstance(expr, Call):
        yield expr
        for arg in expr.args:
            yield from calls_in(arg)


def _needed(lines: dict[str, Line], name: str, seen: set[str]) -> set[str]:
    if name in lines and name not in seen:
        seen.add(name)
        for inner in names_in(lines[name].expr):
            _needed(lines, inner, seen)
    return seen


def parse_condition(text: str, where: str) -> Condition:
    """One comparison between facts about named values."""
    tokens = _Tokens(text, where)
    left = _term(tokens)
    if tokens.peek() not in _COMPARISONS:
        raise tokens.error(repr(tokens.peek() or "the end"), f"one of {' '.join(_COMPARISONS)}")
    comparison = tokens.peek()
    tokens.next += 1
    right = _term(tokens)
    tokens.finish()
    return Condition(left, comparison, right, text.strip(), where)


def _term(tokens: _Tokens) -> Term:
    kind = tokens.items[tokens.next][0] if tokens.next < len(tokens.items) else ""
    if kind == "number":
        return float(tokens.take("number", "a number"))
    name = tokens.take("name", "a number, true, false or value.fact")
    if name in ("true", "false"):
        return name == "true"
    tokens.sign(".")
    return Attribute(name, tokens.take("name", "a fact such as width or rank"))
