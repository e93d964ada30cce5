"""YAML files as plain data that remembers its lines, so that every later complaint can say file:line:column.

The files are data in the YAML 1.2 core schema: mappings with text or integer keys, lists, text, numbers,
``true``/``false``, ``null``. ``no`` and ``on`` are text and ``1e-3`` is a number, unlike in PyYAML's YAML 1.1. Tags,
anchors and aliases are refused: with them a file could name Python objects or grow without bound while it is read, and
a value would have no single place.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fxtune.errors import SourceError

Loc = tuple[str | int, ...]
"""Where a value lies in the data: keys and list indices from the root, as in pydantic."""

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Mark:
    """A place in the text; line and column count from 1."""

    line: int
    column: int
    content_line: int
    """First line of the value itself: for a block scalar (``|``, ``>``) the line after its header."""


@dataclass(frozen=True)
class Document:
    """Plain data from a file, a string or a dict, and where each part of it stands."""

    name: str
    data: Any
    _values: Mapping[Loc, Mark] = field(default_factory=dict, repr=False)
    _keys: Mapping[Loc, Mark] = field(default_factory=dict, repr=False)

    def where(self, loc: Loc = (), *, key: bool = False) -> str:
        """``file:line:col`` of the value at `loc` (of its key with `key`); for data without text ``name: dotted.path``.

        Segments of `loc` that are not in the data are left out, so that pydantic's locations (which name union
        branches and missing keys) lead to the nearest value that exists.
        """
        found = self._existing(loc)
        mark = (self._keys.get(found) if key and found[-1:] == loc[-1:] else None) or self._values.get(found)
        if mark is not None:
            return f"{self.name}:{mark.line}:{mark.column}"
        return f"{self.name}: {dotted(found)}" if found else self.name

    def line_of(self, loc: Loc) -> int | None:
        """Line of the first content line of the scalar at `loc` (the line after ``|``); None for data without text."""
        mark = self._values.get(self._existing(loc))
        return mark.content_line if mark else None

    def validate(self, model: type[Model], *, at: Loc = ()) -> Model:
        """The data at `at` as a `model`.

        Raises:
            SourceError: lists every problem with its place, what was expected, and the nearest key for an unknown one.
        """
        data = self.data
        for segment in at:
            data = data[segment]
        try:
            return model.model_validate(data)
        except ValidationError as error:
            raise self._complaint(model, at, error.errors(include_url=False)) from None

    def _existing(self, loc: Loc) -> Loc:
        data, found = self.data, []
        for segment in loc:
            here = (isinstance(data, dict) and segment in data) or (
                isinstance(data, list | tuple) and isinstance(segment, int) and 0 <= segment < len(data)
            )
            if here:
                data = data[segment]
                found.append(segment)
        return tuple(found)

    def _complaint(self, model: type[BaseModel], at: Loc, errors: list[ErrorDetails]) -> SourceError:
        # The branches of a union complain one by one about one value: gather them into one problem.
        problems: dict[tuple[str, str], list[str]] = {}
        for error in errors:
            loc: Loc = (*at, *error["loc"])
            inside = dotted(self._existing(loc))
            found, expected = _reading(error, model)
            where = self.where(loc, key=error["type"] == "extra_forbidden")
            if self._values and inside:
                found += f" at `{inside}`"
            alternatives = problems.setdefault((where, found), [])
            if expected not in alternatives:
                alternatives.append(expected)
        lines = [f"{where}: {found}; expected {', or '.join(known)}" for (where, found), known in problems.items()]
        asked = f"{self.name} cannot be read as {_named(model)}"
        return SourceError(asked, found="\n    ".join(lines), where=next(iter(problems))[0])


def load(path: Path) -> Document:
    """The YAML file at `path`.

    Raises:
        SourceError: the file cannot be opened, is not UTF-8, or is not the YAML described at the top of this module.
    """
    try:
        return parse(path.read_bytes().decode("utf-8"), str(path))
    except OSError as error:
        raise SourceError(f"cannot read {path}", found=error.strerror or str(error), where=str(path)) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        column = error.start - (error.object.rfind(b"\n", 0, error.start) + 1) + 1
        raise SourceError(
            f"{path} is not text in UTF-8",
            found=f"byte 0x{error.object[error.start]:02x}",
            where=f"{path}:{line}:{column}",
            fix="save the file as UTF-8",
        ) from None


def parse(text: str, name: str) -> Document:
    """YAML `text` as a Document; `name` is what its error messages call the file.

    Raises:
        SourceError: with file, line and column, and what was expected there.
    """
    values: dict[Loc, Mark] = {}
    keys: dict[Loc, Mark] = {}
    try:
        root = yaml.compose(text, Loader=_CoreLoader)
        data = None if root is None else _plain(root, (), name, values, keys)
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, name) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        raise SourceError(
            f"{name} is not valid YAML",
            found=f"character U+{_codepoint(error.character):04X}; expected printable text",
            where=f"{name}:{line}:{column}",
        ) from None
    except RecursionError:
        raise SourceError(f"{name} is nested too deeply to be read", where=name) from None
    values.setdefault((), Mark(1, 1, 1))
    return Document(name, data, values, keys)


def from_data(data: Mapping[str, Any], name: str = "<dict>") -> Document:
    """A Document over a copy of a Python dict, with tuples and ranges in it as lists; its places are dotted paths."""
    return Document(name, _copy(data))


def dotted(loc: Loc) -> str:
    """``rules[0].where.blocks`` for ``("rules", 0, "where", "blocks")``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")


def nearest(word: str, known: Collection[str], count: int = 3) -> list[str]:
    """The names in `known` closest to `word`, closest first; empty when none is near."""
    return difflib.get_close_matches(word, sorted(known), n=count, cutoff=0.6)


def _copy(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _copy(value) for key, value in data.items()}
    return [_copy(item) for item in data] if isinstance(data, list | tuple | range) else data


# ---- reading ---------------------------------------------------------------------------------------------------------

_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


class _CoreLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the YAML 1.2 core schema, used only to compose nodes; it constructs no object."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - PyYAML's way to drop the YAML 1.1 resolvers

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        anchored = isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None
        if anchored or getattr(event, "tag", None) is not None:
            what = "an anchor or alias (&name, *name)" if anchored else f"the tag {event.tag!r}"
            raise yaml.composer.ComposerError(None, None, f"found {what}; expected plain data", event.start_mark)
        return super().compose_node(parent, index)


for _tag, _pattern in (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT)):
    _CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, None)


def _plain(node: yaml.Node, loc: Loc, name: str, values: dict[Loc, Mark], keys: dict[Loc, Mark]) -> Any:
    """The plain value of `node`; fills in where it, its parts and their keys stand."""
    values[loc] = _mark(node)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, (*loc, i), name, values, keys) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(node, name)
    data: dict[str | int, Any] = {}
    for key_node, value_node in node.value:
        key = None if isinstance(key_node, yaml.CollectionNode) else _scalar(key_node, name)
        at = f"{name}:{_mark(key_node).line}:{_mark(key_node).column}"
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise SourceError(f"{name} has a key that is no text", found="expected text or an integer", where=at)
        if key in data:
            first = keys[(*loc, key)]
            raise SourceError(
                f"{name} says {key!r} twice in one mapping",
                found=f"the first one at line {first.line}, column {first.column}; expected each key once",
                where=at,
            )
        keys[(*loc, key)] = _mark(key_node)
        data[key] = _plain(value_node, (*loc, key), name, values, keys)
    return data


def _scalar(node: yaml.Node, name: str) -> str | int | float | bool | None:
    text: str = node.value
    match node.tag.rpartition(":")[2]:
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            try:
                return int(text, 0 if text[:2] in ("0o", "0x") else 10)
            except ValueError:  # Python's guard against integers of thousands of digits
                at = f"{name}:{_mark(node).line}:{_mark(node).column}"
                raise SourceError(f"{name} is not valid", found=f"an integer of {len(text)} digits", where=at) from None
        case "float":
            return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text.lower()))
    return text


def _mark(node: yaml.Node) -> Mark:
    line, column = node.start_mark.line + 1, node.start_mark.column + 1
    block_scalar = isinstance(node, yaml.ScalarNode) and node.style in ("|", ">")
    return Mark(line, column, line + 1 if block_scalar else line)


def _syntax_error(error: yaml.MarkedYAMLError, name: str) -> SourceError:
    mark = error.problem_mark or error.context_mark
    where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    found = (error.problem or "something that is not YAML").removeprefix("found ").removeprefix("but found ")
    if error.context and (start := error.context_mark) and start is not mark:
        found += f" ({error.context} that starts at line {start.line + 1}, column {start.column + 1})"
    fix = "indent with spaces" if "'\\t'" in found else None
    return SourceError(f"{name} is not valid YAML", found=found, where=where, fix=fix)


def _codepoint(character: Any) -> int:
    return character if isinstance(character, int) else ord(character)


# ---- pydantic's complaints in our words ------------------------------------------------------------------------------


def _reading(error: ErrorDetails, model: type[BaseModel]) -> tuple[str, str]:
    """What was found, and what was expected instead."""
    *parent, last = error["loc"] or ("",)
    if error["type"] == "extra_forbidden":
        names = sorted({name for owner in _models_at(model, tuple(parent)) for name in _keys_of(owner)})
        near = nearest(str(last), names, 1)
        hint = f" (nearest: {near[0]!r})" if near else ""
        return f"unknown key {last!r}", f"one of {', '.join(names)}{hint}"
    if error["type"] == "missing":
        about = {_keys_of(owner).get(str(last)) for owner in _models_at(model, tuple(parent))} - {None}
        meaning = "; ".join(sorted(f"`{last}`: {text}" for text in about if text))
        return f"missing key {last!r}", meaning or f"a value for {last!r}"
    if error["type"] in ("model_type", "dict_type", "model_attributes_type"):
        return f"found {_short(error['input'])}", "a mapping"
    text = re.sub(r"^(Value error, )?(\w+ should (be |have |match )?|expected )?", "", error["msg"])
    return f"found {_short(error['input'])}", text.partition(", unable to parse")[0].replace("a valid string", "text")


def _models_at(annotation: Any, loc: Loc) -> Iterator[type[BaseModel]]:
    """The models that `annotation` allows at `loc`; `loc` is pydantic's, with union branches named in it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not loc:
            yield annotation
            return
        field_info = next((f for n, f in annotation.model_fields.items() if loc[0] in (n, f.alias)), None)
        yield from _models_at(field_info.annotation if field_info else annotation, loc[1:])
        return
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType, Annotated):
        for branch in get_args(annotation):
            yield from _models_at(branch, loc)
    elif loc:
        for part in get_args(annotation):
            yield from _models_at(part, loc[1:])


def _keys_of(model: type[BaseModel]) -> dict[str, str | None]:
    return {info.alias or name: info.description for name, info in model.model_fields.items()}


def _named(model: type[BaseModel]) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", model.__name__).lower().join(("a ", ""))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
