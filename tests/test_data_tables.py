"""Text in CSV and JSONL, and the movie reviews."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_files import labels
from fxtune.data import load_data
from fxtune.errors import DataError

ROWS = [("fine, really", "1"), ('he said "no"', "0"), ("über\nalles", "1")]


def written(folder: Path, name: str, rows: list[tuple[str, str]], columns: tuple[str, str] = ("text", "label")) -> None:
    if name.endswith(".jsonl"):
        lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows]
        (folder / name).write_text("\n".join(lines), "utf-8")
        return
    quoted = [[part.replace('"', '""') for part in row] for row in rows]
    text = "".join(f'"{text}","{label}"\n' for text, label in quoted)
    (folder / name).write_text(f"{columns[0]},{columns[1]}\n{text}", "utf-8")


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_tables(tmp_path: Path, ending: str) -> None:
    written(tmp_path, f"train.{ending}", ROWS)
    written(tmp_path, f"validation.{ending}", ROWS[:1])
    data = load_data(f"table/{tmp_path}")
    assert (data.kind, data.classes) == ("texts", ("0", "1"))
    assert [(s.texts, s.label) for s in data.split("train")] == [((text,), int(label)) for text, label in ROWS]
    assert len(data.split("val")) == 1
    one = load_data({"source": "table", "path": str(tmp_path / f"train.{ending}"), "limit": {"train": 2}})
    assert len(one.split("train")) == 2


def test_pairs_of_sentences_and_named_classes(tmp_path: Path) -> None:
    rows = [{"premise": "a", "hypothesis": "b", "gold": "no"}, {"premise": "c", "hypothesis": "d", "gold": "yes"}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = {"source": "table", "path": str(tmp_path), "texts": ["premise", "hypothesis"], "label": "gold"}
    data = load_data({**spec, "classes": ["yes", "no", "maybe"]})
    assert [(s.texts, s.label) for s in data.split("train")] == [(("a", "b"), 1), (("c", "d"), 0)]
    assert data.classes == ("yes", "no", "maybe")
    with pytest.raises(DataError, match=r"label 'no' is out of range[^$]*train\.jsonl:1"):
        load_data({**spec, "classes": ["yes", "maybe"]})
    with pytest.raises(DataError, match="no column 'gild'") as caught:
        load_data({**spec, "label": "gild"})
    assert "nearest: 'gold'" in str(caught.value)


def test_numbers_are_counted_as_numbers(tmp_path: Path) -> None:
    written(tmp_path, "train.csv", [("x", label) for label in ("10", "2", "0")])
    data = load_data(f"table/{tmp_path}")
    assert data.classes == ("0", "2", "10") and labels(data) == [2, 1, 0]


def test_a_label_that_training_does_not_have(tmp_path: Path) -> None:
    """The unlabelled test rows of GLUE have -1."""
    written(tmp_path, "train.csv", ROWS)
    written(tmp_path, "test.csv", [("x", "0"), ("y", "-1")])
    with pytest.raises(DataError, match=r"'-1' is out of range[^$]*2 classes: 0, 1[^$]*test\.csv:3"):
        load_data(f"table/{tmp_path}")


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("train.jsonl", b'{"text": "x", "label": 0}\n[1]', r"no JSON object[^$]*train\.jsonl:2"),
        ("train.jsonl", b'{"text": "x", "label": 0}\n{', r"no JSON[^$]*train\.jsonl:2"),
        ("train.csv", b'text,label\n"x,0\n', r"no CSV[^$]*train\.csv"),
        ("train.csv", "text,label\nüber,0\n".encode("latin-1"), "not UTF-8"),
        (
            "train.csv",
            b"text,label\nfine, really,0\n",
            r"more columns[^$]*' really'|more columns[^$]*'0'[^$]*train\.csv:2",
        ),
        ("train.csv", b"text,label\nfine,\n", r"nothing in the column 'label'[^$]*train\.csv:2"),
        ("train.jsonl", b'{"text": null, "label": 0}', r"nothing in the column 'text'[^$]*None[^$]*train\.jsonl:1"),
        ("test.csv", b"text,label\nx,0\n", r"no file 'train\.csv'"),
    ],
)
def test_broken_tables(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        load_data(f"table/{tmp_path}")


def test_a_line_ends_at_a_line_feed_alone(tmp_path: Path) -> None:
    """Unicode has other separators of lines, and JSON lets them stand in a text."""
    rows = [(f"one{mark}two", "0") for mark in "\u2028\u0085\x0c"]
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows]
    (tmp_path / "train.jsonl").write_text("\n\n".join(lines), "utf-8")
    assert [s.texts[0] for s in load_data(f"table/{tmp_path}").split("train")] == [text for text, _ in rows]


def test_two_files_of_one_split(tmp_path: Path) -> None:
    written(tmp_path, "train.csv", ROWS)
    written(tmp_path, "valid.csv", ROWS)
    written(tmp_path, "val.jsonl", ROWS)
    with pytest.raises(DataError, match=r"two are the split 'val'[^$]*val\.jsonl and valid\.csv"):
        load_data(f"table/{tmp_path}")


def test_reviews(tmp_path: Path) -> None:
    lines = [
        "1\t2.5\tGood.",
        "2\t-1.0\tBad.",
        "3\t0.0\tNeutral.",
        "4\t1.0\tGood.",
        *(f"{i}\t1\tG{i}" for i in range(20)),
    ]
    (tmp_path / "movieReviewSnippets_GroundTruth.txt").write_text("\n".join(lines))
    data = load_data({"source": "reviews", "path": str(tmp_path), "parts": {"train": 1.0}})
    found = {s.texts[0]: s.label for s in data.split("train")}
    assert len(found) == 22 and found["Good."] == 1 and found["Bad."] == 0 and data.classes == ("bad", "good")
    with pytest.raises(DataError, match="movieReviewSnippets") as caught:
        load_data(f"reviews/{tmp_path / '..'}")
    assert "make demo" in str(caught.value)
