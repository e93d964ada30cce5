"""Named patterns: the shipped files and those in a user's rule file, read and checked together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from fxtune import source
from fxtune.errors import PatternError
from fxtune.patterns.parse import calls_in, names_in, parse_body, parse_condition
from fxtune.patterns.syntax import Attribute, Body, Pattern
from fxtune.resources import patterns_dir
from fxtune.source import Document
from fxtune.view import ops

_Words = Annotated[list[str], BeforeValidator(lambda v: v.split() if isinstance(v, str) else v)]

_VIEW_OPS = frozenset(ops.RENAMED.values()) | {"linear", "part", "scale", "shift", "param", "buffer", "input", "opaque", "conv"}


class PatternSpec(BaseModel):
    """One named pattern: a unit of computation from its inputs to its output."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    about: str = Field("", description="what the pattern is, for people")
    inputs: _Words = Field(..., alias="in", description="names of the values that it takes in; a tuner reads the first")
    output: str = Field(..., alias="out", description="name of the value that it gives")
    dataflow: str | None = Field(None, description="lines `name = op(value, ...)`; or use `any` for alternatives")
    any: dict[str, str] | None = Field(None, description="alternatives: name of the variant to its dataflow; the first that matches counts")
    where: list[str] = Field(default_factory=list, description="comparisons such as `x.width == y.width`")
    shapes: dict[str, list[str | int]] = Field(
        default_factory=dict, description="sizes by named dimensions, `...` for any run of them: `x: [B, ..., D]`"
    )


class PatternFile(BaseModel):
    """A file of patterns."""

    model_config = ConfigDict(extra="forbid")

    fxtune: Literal[1] = Field(..., description="version of the file format")
    about: str = Field("", description="what the file holds")
    ops: dict[str, _Words] = Field(default_factory=dict, description="named sets of operators")
    patterns: dict[str, PatternSpec] = Field(default_factory=dict, description="named patterns")


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
        raise PatternError(f"no pattern is called `{name}`", found=known, where=where, fix="define it under `patterns:`")

    def ops_of(self, name: str) -> frozenset[str] | None:
        """The operators that a name in a dataflow stands for; None when it names a pattern."""
        if name in self.patterns:
            return None
        return self.sets.get(name, frozenset({name}))


def load_patterns(more: Iterable[tuple[Document, tuple[str | int, ...]]] = ()) -> Library:
    """The shipped patterns, and those in other documents, checked together.

    Args:
        more: documents with ``patterns:`` (and ``ops:``), and where in the document they lie.

    Raises:
        PatternError, SourceError: with file, line and what was expected.
    """
    patterns: dict[str, Pattern] = {}
    sets: dict[str, frozenset[str]] = {}
    shipped = [(source.load(path), ()) for path in sorted(patterns_dir().glob("*.yaml"))]
    for document, at in itertools.chain(shipped, more):
        spec = _spec(document, at)
        sets |= {name: frozenset(words) for name, words in spec.ops.items()}
        for name, pattern in spec.patterns.items():
            patterns[name] = _pattern(name, pattern, document, (*at, "patterns", name))
    library = Library(patterns, sets)
    for pattern in patterns.values():
        _check(pattern, library)
    return library


def _spec(document: Document, at: tuple[str | int, ...]) -> PatternFile:
    """A rule file holds patterns among other things: only its patterns are read here."""
    data: Any = document.data
    for segment in at:
        data = data[segment]
    own = {key: data[key] for key in PatternFile.model_fields if key in data}
    if own == data:
        return document.validate(PatternFile, at=at)
    return PatternFile(
        fxtune=1,
        ops={k: list(v.split() if isinstance(v, str) else v) for k, v in (data.get("ops") or {}).items()},
        patterns={name: document.validate(PatternSpec, at=(*at, "patterns", name)) for name in data.get("patterns") or {}},
    )


def _places(document: Document, loc: tuple[str | int, ...]) -> Iterator[str]:
    """``file:line`` of every line of a block of text."""
    first = document.line_of(loc)
    if first is None:
        return itertools.repeat(document.where(loc))
    return (f"{document.name}:{first + offset}" for offset in itertools.count())


def _pattern(name: str, spec: PatternSpec, document: Document, loc: tuple[str | int, ...]) -> Pattern:
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
    return Pattern(name, spec.about, tuple(spec.inputs), spec.output, bodies, shapes, conditions, where)


def _check(pattern: Pattern, library: Library) -> None:
    """Every operator and name is known, every input is used, and no pattern is built on itself."""
    for body in pattern.bodies:
        free = {n for line in body.lines.values() for n in names_in(line.expr)} - set(body.lines)
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
        for word in [t.name for t in terms] + list(pattern.shapes):
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
            inner = library.patterns.get(call.op)
            if inner is not None and len(call.args) > len(inner.inputs):
                raise PatternError(
                    f"`{call.op}` is given {len(call.args)} values",
                    found=f"pattern `{call.op}` takes in {len(inner.inputs)}: {', '.join(inner.inputs)}",
                    where=line.where,
                )
            for op in library.ops_of(call.op) or ():
                if not _known(op):
                    near = source.nearest(op, {*library.patterns, *library.sets, *_VIEW_OPS})
                    raise PatternError(
                        f"no operator, set or pattern is called `{op}`",
                        found=f"closest: {', '.join(near)}" if near else None,
                        where=line.where,
                    )


def _known(op: str) -> bool:
    if op in ops.LAYOUT or op in ops.CAST or op in ops.DROPOUT:
        return False  # quiet operators are edges of the view and never match
    return op in _VIEW_OPS or hasattr(torch.ops.aten, op) or hasattr(torch.ops.aten, f"{op}_")


def _check_acyclic(pattern: Pattern, library: Library, path: tuple[str, ...]) -> None:
    if pattern.name in path:
        raise PatternError(f"pattern `{pattern.name}` is built on itself", found=" -> ".join((*path, pattern.name)), where=pattern.where)
    for body in pattern.bodies:
        for line in body.lines.values():
            for call in calls_in(line.expr):
                if call.op in library.patterns:
                    _check_acyclic(library.patterns[call.op], library, (*path, pattern.name))
