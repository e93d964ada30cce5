"""Images in folders: by class, as VTAB-1K lays them out, with captions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data_files
from data_files import BLUE, RED, colour, labels, picture
from fxtune.data import load_data
from fxtune.errors import DataError


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    return data_files.birds(tmp_path)


def test_images_in_folders(birds: Path) -> None:
    picture(birds / "train" / "jay" / ".hidden.png")
    (birds / "train" / "jay" / "notes.txt").write_text("no image")
    data = load_data(f"images/{birds}")
    assert (data.kind, data.classes) == ("images", ("jay", "robin"))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 6, "val": 2, "test": 4}
    assert [(s.label, colour(s)) for s in data.split("val")] == [(0, BLUE), (1, RED)]
    assert str(data) == f"images at {birds}: 6 train, 2 val, 4 test, 2 classes"


def test_folders_of_classes_alone_are_divided_when_asked(birds: Path) -> None:
    with pytest.raises(DataError, match="has no splits") as caught:
        load_data(f"images/{birds / 'train'}")
    assert "parts:" in str(caught.value) and "jay, robin" in str(caught.value)
    spec = {"source": "images", "path": str(birds / "train"), "parts": {"train": 2 / 3, "test": 1 / 3}}
    data = load_data(spec)
    assert sorted(labels(data)) == [0, 0, 1, 1] and sorted(labels(data, "test")) == [0, 1]


def test_a_test_set_of_fewer_classes_is_answered_among_them(birds: Path) -> None:
    picture(birds / "train" / "wren" / "0.png")
    data = load_data(f"images/{birds}")
    assert data.classes == ("jay", "robin", "wren")
    assert data.split("test").among == (0, 1) and data.split("train").among is None


def test_vtab(tmp_path: Path) -> None:
    for i in range(3):
        picture(tmp_path / "images" / f"{i}.png", BLUE)
    lines = [f"images/{i % 3}.png {i % 3}\n" for i in range(1000)]
    (tmp_path / "train800.txt").write_text("".join(lines[:800]))
    (tmp_path / "val200.txt").write_text("".join(lines[800:]))
    (tmp_path / "train800val200.txt").write_text("".join(lines))
    (tmp_path / "test.txt").write_text("images/1.png 1\nimages/2.png 2\n")
    data = load_data(f"vtab/{tmp_path}")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 800, "val": 200, "test": 2}
    assert labels(data)[:4] == [0, 1, 2, 0] and labels(data, "test") == [1, 2] and len(data.classes) == 3
    assert colour(data.split("val")[0]) == BLUE
    whole = load_data({"source": "vtab", "path": str(tmp_path), "train": "train800val200"})
    assert list(whole.splits) == ["train", "test"] and len(whole.split("train")) == 1000

    (tmp_path / "test.txt").write_text("images/1.png 1\nimages/2.png 7\n")
    with pytest.raises(DataError, match=r"out of range[^$]*7, of 3 classes[^$]*test\.txt:2"):
        load_data(f"vtab/{tmp_path}")
    (tmp_path / "test.txt").write_text("images/1.png one\n")
    with pytest.raises(DataError, match=r"no file and label[^$]*test\.txt:1"):
        load_data(f"vtab/{tmp_path}")
    (tmp_path / "test.txt").write_text("images/11.png 1\n")
    with pytest.raises(DataError, match=r"no image 'images/11\.png'[^$]*1\.png"):
        load_data(f"vtab/{tmp_path}")
    (tmp_path / "train800.txt").write_text("".join(lines[:799]))
    with pytest.raises(DataError, match="799 lines instead of 800"):
        load_data(f"vtab/{tmp_path}")


def test_captions(tmp_path: Path) -> None:
    one, two = picture(tmp_path / "1.png"), picture(tmp_path / "2.png", BLUE)
    (tmp_path / "1.txt").write_text("a red square\n")
    with pytest.raises(DataError, match=r"no caption[^$]*2\.txt"):
        load_data(f"captions/{tmp_path}")
    (tmp_path / "2.txt").write_text("a blue square")
    data = load_data(f"captions/{tmp_path}")
    assert (data.kind, data.classes) == ("captions", ())
    assert [(s.texts, s.label, colour(s)) for s in data.split("train")] == [
        (("a red square",), None, RED),
        (("a blue square",), None, BLUE),
    ]
    instance = load_data({"source": "captions", "path": str(tmp_path), "caption": "a photo of sks"})
    assert [s.texts for s in instance.split("train")] == [("a photo of sks",)] * 2

    lines = [
        json.dumps({"file_name": two.name, "text": "second"}),
        json.dumps({"file_name": one.name, "text": "first"}),
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    listed = load_data(f"captions/{tmp_path}").split("train")
    assert [(Path(s.name).name, s.texts) for s in listed] == [("2.png", ("second",)), ("1.png", ("first",))]
    for line, complaint in (
        ("{", "no JSON"),
        ('{"text": "x"}', "no caption"),
        ('{"file_name": "3.png", "text": "x"}', r"no image '3\.png'"),
    ):
        (tmp_path / "metadata.jsonl").write_text("\n".join([*lines, line]))
        with pytest.raises(DataError, match=rf"{complaint}[^$]*metadata\.jsonl:3"):
            load_data(f"captions/{tmp_path}")


def test_grey_of_sixteen_bits(tmp_path: Path) -> None:
    grey = np.array([[0, 257 * 10], [257 * 100, 65535]], np.uint16)
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.fromarray(grey).save(tmp_path / "train" / "a" / "0.png")
    found = load_data(f"images/{tmp_path}").split("train")[0].picture
    assert found is not None and np.array(found())[..., 0].tolist() == [[0, 10], [100, 255]]


def test_a_split_that_is_there_twice(birds: Path) -> None:
    picture(birds / "val" / "jay" / "0.png")
    with pytest.raises(DataError, match=r"two are the split 'val'[^$]*val and valid"):
        load_data(f"images/{birds}")


def test_sets_that_are_only_tested_on(birds: Path, tmp_path: Path) -> None:
    """With `test/` alone, or with classes alone and all of them for the test."""
    picture(tmp_path / "sketch" / "test" / "jay" / "0.png")
    picture(tmp_path / "bare" / "robin" / "0.png")
    bare = {"source": "images", "path": str(tmp_path / "bare"), "parts": {"test": 1.0}}
    tests = {"sketch": f"images/{tmp_path / 'sketch'}", "bare": bare}
    data = load_data({"source": "images", "path": str(birds), "tests": tests})
    assert (labels(data, "sketch"), data.split("sketch").among) == ([0], (0,))
    assert (labels(data, "bare"), data.split("bare").among) == ([1], (1,))
    with pytest.raises(DataError, match="no split called 'train'"):
        load_data(f"images/{tmp_path / 'sketch'}").split("train")


def test_captions_of_another_encoding(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("über".encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8[^$]*a\.txt"):
        load_data(f"captions/{tmp_path}")


def test_an_image_that_does_not_decode_says_which(birds: Path) -> None:
    broken = birds / "train" / "jay" / "0.png"
    broken.write_bytes(broken.read_bytes()[:40])
    sample = load_data(f"images/{birds}").split("train")[0]
    assert sample.picture is not None
    with pytest.raises(DataError, match=r"can't be decoded[^$]*jay/0\.png"):
        sample.picture()
