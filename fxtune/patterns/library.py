"""Named patterns: the shipped files and those in a user's rule file, read and checked together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from fxtune import source
from fxtune import vocabulary as ops
from fxtune.errors import PatternError
from fxtune.patterns.parse import calls_in, names_in, parse_body, parse_condition
from fxtune.patterns.spec import PatternFile, PatternSpec
from fxtune.patterns.syntax import Attribute, Body, Call, Expr, Pattern
from fxtune.resources import patterns_dir
from fxtune.source import Document

_VIEW_OPS = frozenset(ops.RENAMED.values()) | {
    "linear", "part", "scale", "shift", "param", "buffer", "input", "opaque", "conv",
}  # fmt: skip


class Definitions(Protocol):
    """Anything that defines patterns: a pattern file, or a rule file with patterns of its own."""

    @property
    def document(self) -> Document:
        """Where they are written; they lie under ``ops`` and ``patterns``."""

    @property
    def ops(self) -> Mapping[str, Sequence[str]]:
        """Named sets of operators."""

    @property
    def patterns(self) -> Mapping[str, PatternSpec]:
        """Named patterns."""


@dataclass(frozen=True)
class _File:
    """A pattern file, read."""

    document: Document
    ops: Mapping[str, Sequence[str]]
    patterns: Mapping[str, PatternSpec]


def read_definitions(document: Document) -> Definitions:
    """A document as a file of patterns."""
    file = document.validate(PatternFile)
    return _File(document, file.ops, file.patterns)


@dataclass(frozen=True)
class Library:
    """All patterns and operator sets that a match can name."""

    patterns: Mapping[str, Pattern]
    sets: Mapping[str, frozenset[str]]

    def get(self, name: str, *, where: str | None = None) -> Pattern:
        """The pattern of that name.

        Raises:
            PatternError: with the closest names.
        """
        if name in self.patterns:
            return self.patterns[name]
        near = source.nearest(name, self.patterns)
        known = f"closest: {', '.join(near)}" if near else f"known: {', '.join(sorted(self.patterns))}"
        raise PatternError(
            f"no pattern is called `{name}`", found=known, where=where, fix="define it under `patterns:`"
        )

    def inner(self, name: str) -> Pattern | None:
        """The pattern that a name in a dataflow stands for; None for operators.

        An operator of the view keeps its name there, whatever pattern bears it too: `linear` is the operator in a
        dataflow, and the pattern of that name in a rule.
        """
        return None if name in _VIEW_OPS else self.patterns.get(name)

    def ops_of(self, name: str) -> frozenset[str] | None:
        """The operators that a name in a dataflow stands for; None when it names a pattern."""
        return self.sets.get(name, frozenset({name})) if self.inner(name) is None else None

    def line(self, kind: str, word: str, *, where: str | None = None) -> str:
        """The line of a pattern, or of a pattern inside of it, that `word` names, dotted as a match names it.

        Args:
            kind: the pattern's name.
            word: a line's name; the dots before it may be left out where no other line ends like it.
            where: where the word was written, for errors.

        Raises:
            PatternError: no line is called so, or several are.
        """
        lines = sorted(self._lines(self.get(kind, where=where)))
        found = [word] if word in lines else [line for line in lines if line.endswith(f".{word}")]
        if len(found) == 1:
            return found[0]
        if found:
            raise PatternError(
                f"`{word}` names several lines of pattern `{kind}`",
                found=", ".join(found),
                where=where,
                fix=f"write one of them in full, such as `{found[0]}`",
            )
        short = {line.rpartition(".")[2]: line for line in lines}
        near = list(dict.fromkeys(short.get(name, name) for name in source.nearest(word, {*lines, *short})))
        raise PatternError(
            f"pattern `{kind}` has no line called `{word}`",
            found=f"nearest: {', '.join(near)}" if near else f"its lines are {', '.join(lines)}",
            where=where,
            fix="name a line of the pattern, or of a pattern that one of its lines is",
        )

    def _lines(self, pattern: Pattern) -> set[str]:
        """The names of all lines of a unit, those of inner patterns dotted; lines around the unit left out."""
        found: set[str] = set()
        for body in pattern.bodies:
            around = {line.name for line in body.context}
            for line in (line for line in body.lines.values() if line.name not in around):
                found |= {line.name, *(f"{line.name}.{inner}" for inner in self._lines_in(line.expr))}
        return found

    def _lines_in(self, expr: Expr) -> set[str]:
        """The lines that the outermost pattern of an expression brings along."""
        if not isinstance(expr, Call):
            return set()
        inner = self.inner(expr.op)
        found = self._lines(inner) if inner is not None and expr.quantity != "*" else set()
        return found | self._lines_in(expr.args[0]) if expr.quantity else found


def load_patterns(more: Iterable[Definitions] = ()) -> Library:
    """The shipped patterns, and further ones, checked together; a later definition takes the place of an earlier one.

    Raises:
        PatternError, SourceError: with file, line and what was expected.
    """
    patterns, sets, places = dict(_shipped().patterns), dict(_shipped().sets), dict[str, str]()
    for definitions in more:
        document = definitions.document
        for name, words in definitions.ops.items():
            sets[name], places[name] = frozenset(words), document.where(("ops", name))
        for name, spec in definitions.patterns.items():
            patterns[name] = _pattern(name, spec, document)
    return _checked(Library(patterns, sets), places)


@lru_cache(maxsize=1)
def _shipped() -> Library:
    patterns: dict[str, Pattern] = {}
    sets: dict[str, frozenset[str]] = {}
    for path in sorted(patterns_dir().glob("*.yaml")):
        definitions = read_definitions(source.load(path))
        sets |= {name: frozenset(words) for name, words in definitions.ops.items()}
        patterns |= {name: _pattern(name, spec, definitions.document) for name, spec in definitions.patterns.items()}
    return _checked(Library(patterns, sets), dict.fromkeys(sets, str(patterns_dir())))


def _checked(library: Library, places: Mapping[str, str]) -> Library:
    for name, where in places.items():
        for word in sorted(library.sets[name]):
            _check_operator(word, library, where)
    for pattern in library.patterns.values():
        _check(pattern, library)
    return library


def _places(document: Document, loc: tuple[str | int, ...]) -> Iterator[str]:
    """``file:line`` of every line of a block of text."""
    first = document.line_of(loc)
    if first is None:
        return itertools.repeat(document.where(loc))
    return (f"{document.name}:{first + offset}" for offset in itertools.count())


def _pattern(name: str, spec: PatternSpec, document: Document) -> Pattern:
    loc = ("patterns", name)
    where = document.where(loc)
    if (spec.dataflow is None) == (spec.any is None):
        raise PatternError(f"pattern `{name}` needs one of `dataflow:` and `any:`", where=where)
    texts = {name: spec.dataflow} if spec.dataflow is not None else spec.any or {}
    at = (*loc, "dataflow") if spec.dataflow is not None else (*loc, "any")
    bodies = tuple(
        parse_body(variant, text, spec.output, _places(document, at if spec.dataflow is not None else (*at, variant)))
        for variant, text in texts.items()
    )
    conditions = tuple(parse_condition(text, document.where((*loc, "where", i))) for i, text in enumerate(spec.where))
    shapes = {value: tuple(sizes) for value, sizes in spec.shapes.items()}
    return Pattern(
        name,
        spec.about,
        tuple(spec.inputs),
        spec.output,
        bodies,
        shapes,
        conditions,
        tuple(spec.apart),
        tuple(spec.free),
        where,
    )


def _check(pattern: Pattern, library: Library) -> None:
    """Every operator and name is known, every input is used, and no pattern is built on itself."""
    for body in pattern.bodies:
        free = {n for line in body.lines.values() for n in names_in(line.expr)} - set(body.lines)
        if unknown := sorted(free - {*pattern.inputs, *pattern.free}):
            near = source.nearest(unknown[0], {*body.lines, *pattern.inputs})
            raise PatternError(
                f"`{unknown[0]}` in `{body.variant}` of pattern `{pattern.name}` is not defined",
                found=f"the lines define {', '.join(body.lines)}; it takes in {', '.join(pattern.inputs)}",
                where=next(line.where for line in body.lines.values() if unknown[0] in names_in(line.expr)),
                fix=f"did you mean `{near[0]}`?"
                if near
                else "list it under `in:` or `free:`, or write `_` for any value",
            )
        if missing := [n for n in pattern.inputs if n not in free and n not in body.lines]:
            raise PatternError(
                f"`{body.variant}` of pattern `{pattern.name}` never uses its input `{missing[0]}`",
                found=f"it takes in {', '.join(sorted(free)) or 'nothing'}",
                where=pattern.where,
                fix="list in `in:` the values that each alternative uses",
            )
        _check_calls(pattern, body, library)
        named = free | set(body.lines)
        terms = [t for c in pattern.conditions for t in (c.left, c.right) if isinstance(t, Attribute)]
        for word in [t.name for t in terms] + [*pattern.shapes, *pattern.apart]:
            if word not in named:
                near = source.nearest(word, named)
                raise PatternError(
                    f"pattern `{pattern.name}` puts a condition on `{word}`, which `{body.variant}` does not name",
                    found=f"it names {', '.join(sorted(named))}",
                    where=pattern.where,
                    fix=f"did you mean `{near[0]}`?" if near else None,
                )
    _check_acyclic(pattern, library, ())


def _check_calls(pattern: Pattern, body: Body, library: Library) -> None:
    for line in body.lines.values():
        for call in calls_in(line.expr):
            inner = library.inner(call.op)
            if inner is not None and len(call.args) > len(inner.inputs):
                raise PatternError(
                    f"`{call.op}` is given {len(call.args)} values",
                    found=f"pattern `{call.op}` takes in {len(inner.inputs)}: {', '.join(inner.inputs)}",
                    where=line.where,
                )
            if inner is None and call.op not in library.sets:
                _check_operator(call.op, library, line.where)


def _check_operator(op: str, library: Library, where: str) -> None:
    if op in ops.LAYOUT or op in ops.CAST or op in ops.DROPOUT:
        raise PatternError(
            f"`{op}` cannot stand in a dataflow",
            found="layout, casts and dropout are edges of the view: any run of them may lie between two operators",
            where=where,
            fix="leave it out",
        )
    if op in _VIEW_OPS:
        return
    import torch  # only here: a rule file's form is checked without it

    if hasattr(torch.ops.aten, op) or hasattr(torch.ops.aten, f"{op}_"):
        return
    near = source.nearest(op, {*library.patterns, *library.sets, *_VIEW_OPS, *dir(torch.ops.aten)})
    raise PatternError(
        f"no operator, set or pattern is called `{op}`",
        found=f"closest: {', '.join(near)}" if near else "no name is close to it",
        where=where,
        fix="use ATen's names, those of `fxtune inspect`, or define a pattern or a set of that name",
    )


def _check_acyclic(pattern: Pattern, library: Library, path: tuple[str, ...]) -> None:
    if pattern.name in path:
        raise PatternError(
            f"pattern `{pattern.name}` is built on itself",
            found=" -> ".join((*path, pattern.name)),
            where=pattern.where,
        )
    for body in pattern.bodies:
        for line in body.lines.values():
            for call in calls_in(line.expr):
                inner = library.inner(call.op)
                if inner is not None:
                    _check_acyclic(inner, library, (*path, pattern.name))
