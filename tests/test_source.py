"""YAML with positions: what is read, where it says things stand, and what it refuses."""

import json
import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from fxtune import source
from fxtune.errors import SourceError

SCALARS = st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text("ab:#-'\" é", max_size=6)
KEYS = st.text("abc_:#'\" 1", max_size=5)
DATA = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, min_size=1, max_size=3) | st.dictionaries(KEYS, inner, min_size=1, max_size=3),
    max_leaves=12,
)


def write(data, gap):
    """Block-style YAML of `data` with `gap()` blank or comment lines strewn in, and (line, column) of each value."""
    lines, places, keys = [], {}, {}

    def put(prefix, value, loc, indent):
        for _ in range(gap()):
            lines.append("# a comment")
        if isinstance(value, dict | list):
            lines.append(prefix)
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                head = f"{json.dumps(key)}:" if isinstance(value, dict) else "-"
                if not isinstance(item, dict | list):
                    head += " "
                before = len(lines)
                put(" " * indent + head, item, (*loc, key), indent + 2)
                start = next(i for i in range(before, len(lines)) if not lines[i].startswith("#"))
                keys[(*loc, key)] = (start + 1, indent + 1)
            # A block collection begins where its first entry does.
            places[loc] = keys[(*loc, next(iter(value)) if isinstance(value, dict) else 0)]
        else:
            places[loc] = (len(lines) + 1, len(prefix) + 1)
            lines.append(prefix + json.dumps(value))

    put("", data, (), 0)
    return "\n".join(lines), places, keys


@given(DATA, st.data())
def test_reads_what_was_written_and_knows_where(data, draw):
    text, places, keys = write(data, lambda: draw.draw(st.integers(0, 2)))
    document = source.parse(text, "f.yaml")
    assert document.data == data
    for loc, (line, column) in places.items():
        assert document.where(loc) == f"f.yaml:{line}:{column}"
        assert document.line_of(loc) == line
        # A location that goes on into nothing (pydantic names union branches) leads to the last value that exists.
        assert document.where((*loc, "no such key", 99)) == f"f.yaml:{line}:{column}"
    for loc, (line, column) in keys.items():
        if isinstance(loc[-1], str):
            assert document.where(loc, key=True) == f"f.yaml:{line}:{column}"


@given(DATA, st.sampled_from(["twice", "tab", "alias", "anchor", "tag", "bracket"]), st.data())
def test_broken_files_are_refused_at_the_right_line(data, fault, draw):
    text, _, _ = write({"first": 1, "data": data}, lambda: draw.draw(st.integers(0, 1)))
    lines = text.split("\n")
    broken = {
        "twice": ('"first": 2', 1),
        "tab": ("\tx: 1", 1),
        "alias": ("x: *first", 4),
        "anchor": ("x: &first 3", 4),
        "tag": ("x: !!python/name:os.system ''", 4),
        "bracket": ("x: [1, 2}", 9),
    }
    line, column = broken[fault]
    with pytest.raises(SourceError) as error:
        source.parse("\n".join([*lines, line, "z: 1"]), "f.yaml")
    assert error.value.where == f"f.yaml:{len(lines) + 1}:{column}"


@given(st.text("abé:-[]{}!&*|>'\"#%@`, \n\t\x00\ufeff01?.", max_size=40))
def test_any_text_is_read_or_refused_with_a_place(text):
    try:
        document = source.parse(text, "f.yaml")
    except SourceError as error:
        assert error.where.startswith("f.yaml:")
    else:
        assert document.where(()).startswith("f.yaml:")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("none", "none"),
        ("null", None),
        ("~", None),
        ("", None),
        ("True", True),
        ("1e-3", 1e-3),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("0..11", "0..11"),
        ("2024-01-02", "2024-01-02"),
        ("=", "="),
        ("'1'", "1"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = source.parse(f"x: {text}", "f.yaml").data["x"]
    assert (found, type(found)) == (value, type(value))


def test_not_a_number_is_a_number():
    assert math.isnan(source.parse("x: .nan", "f.yaml").data["x"])


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[" * 3000, "f.yaml"),
        (f"x: {'9' * 5000}", "f.yaml:1:4"),
        ("? [1]\n: 2", "f.yaml:1:3"),
        ("true: 1", "f.yaml:1:1"),
        ("1.5: 1", "f.yaml:1:1"),
        ("a: 1\n---\nb: 2", "f.yaml:2:1"),
        ("a: 1\nb: \x07", "f.yaml:2:4"),
    ],
)
def test_oddities_are_refused(text, where):
    with pytest.raises(SourceError) as error:
        source.parse(text, "f.yaml")
    assert error.value.where == where


@pytest.mark.parametrize("header", ["|", "|-", ">", "|  # the dataflow"])
def test_a_block_scalar_begins_after_its_header(header):
    document = source.parse(f"a: 1\nflow: {header}\n  h = linear(x)\n  y = gelu(h)\nb: one line", "f.yaml")
    assert document.line_of(("flow",)) == 3
    assert document.line_of(("b",)) == 5
    assert document.data["flow"].startswith("h = linear(x)")


def test_files(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_bytes(b"a: 1\r\nb: \xff\n")
    with pytest.raises(SourceError, match="UTF-8") as error:
        source.load(path)
    assert error.value.where == f"{path}:2:4"
    with pytest.raises(SourceError, match="No such file"):
        source.load(tmp_path / "none.yaml")
    with pytest.raises(SourceError, match="cannot read"):
        source.load(tmp_path)
    path.write_text("\ufeffa: é", encoding="utf-8")
    assert source.load(path).data == {"a": "é"}


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    size: int = Field(ge=1, description="how large")
    tint: Literal["red", "blue"] | int = "red"


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")
    parts: list[Part]
    named: dict[str, Part | list[Part]] = {}


# A caret stands before the place of the fault.
FAULTS = [
    ("{size: 1, ^sise: 3}", "unknown key 'sise'", "nearest: 'size'"),
    ("{size: 1, tint: ^green}", "found 'green'", "expected 'red' or 'blue', or a valid integer"),
    ("{size: ^0}", "found 0", "expected greater than or equal to 1"),
    ("^{tint: 3}", "missing key 'size'", "expected `size`: how large"),
]


@given(st.integers(1, 6), st.data(), st.sampled_from(FAULTS), st.booleans())
def test_complaints_point_to_the_line(count, data, fault, named):
    broken = data.draw(st.integers(0, count - 1))
    text, found, expected = fault
    lines = ["parts: [{size: 1}]", "named:"] if named else ["parts:"]
    for i in range(count):
        lines.append((f"  k{i}: " if named else "  - ") + (text if i == broken else "{size: 1}"))
    line = next(i for i, line in enumerate(lines) if "^" in line)
    column = lines[line].index("^")
    with pytest.raises(SourceError) as error:
        source.parse("\n".join(lines).replace("^", ""), "f.yaml").validate(Whole)
    (complaint,) = [
        c for c in error.value.found.split("\n    ") if c.startswith(f"f.yaml:{line + 1}:{column + 1}: {found}")
    ]
    assert expected in complaint


def test_every_problem_is_listed_once():
    text = "parts:\n- {size: x}\n- {sizes: 1}\n- 7\nnamed: []\nextra: 1"
    with pytest.raises(SourceError) as error:
        source.parse(text, "f.yaml").validate(Whole)
    assert error.value.found.split("\n    ") == [
        "f.yaml:2:10: found 'x' at `parts[0].size`; expected a valid integer",
        "f.yaml:3:3: missing key 'size' at `parts[1]`; expected `size`: how large",
        "f.yaml:3:4: unknown key 'sizes' at `parts[1].sizes`; expected one of size, tint (nearest: 'size')",
        "f.yaml:4:3: found 7 at `parts[2]`; expected a mapping",
        "f.yaml:5:8: found [] at `named`; expected a mapping",
        "f.yaml:6:1: unknown key 'extra' at `extra`; expected one of named, parts",
    ]
    assert error.value.where == "f.yaml:2:10"


def test_a_part_of_a_document_is_validated_in_its_place():
    document = source.parse("parts:\n- {size: 1}\n- {size: 0}", "f.yaml")
    assert document.validate(Part, at=("parts", 0)).size == 1
    with pytest.raises(SourceError) as error:
        document.validate(Part, at=("parts", 1))
    assert error.value.where == "f.yaml:3:10"


def test_a_dict_has_dotted_paths_and_is_copied():
    data = {"parts": [{"size": 1}, {"size": 0}], "span": range(3), "pair": (1, 2)}
    document = source.from_data(data, "<rules>")
    assert document.where(("parts", 1, "size")) == "<rules>: parts[1].size"
    assert document.line_of(("parts",)) is None
    assert document.data["span"] == [0, 1, 2] and document.data["pair"] == [1, 2]
    data["parts"][0]["size"] = 5
    assert document.data["parts"][0]["size"] == 1
    with pytest.raises(SourceError) as error:
        document.validate(Part, at=("parts", 1))
    assert error.value.where == "<rules>: parts[1].size"
