"""Data from where users have them, each source on files that are written here; and what is said where they are not."""

from __future__ import annotations

import json
import math
import pickle
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from fxtune.data import Data, Sample, load_data
from fxtune.data.sprites import POSSIBLE, drawn, label, latents
from fxtune.errors import DataError, SourceError

RED, BLUE = (250, 5, 5), (5, 5, 250)


def picture(path: Path, colour: tuple[int, int, int] = RED, size: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)
    return path


def colour(sample: Sample) -> tuple[int, int, int]:
    assert sample.picture is not None
    found = sample.picture().getpixel((0, 0))
    assert isinstance(found, tuple)
    return found[0], found[1], found[2]


def labels(data: Data, split: str = "train") -> list[int | None]:
    return [sample.label for sample in data.split(split)]


# ---- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("valid", 1), ("test", 2)):
        for name, shade in (("robin", RED), ("jay", BLUE)):
            for i in range(count):
                picture(tmp_path / "birds" / split / name / f"{i}.png", shade)
    return tmp_path / "birds"


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


# ---- tables ----------------------------------------------------------------------------------------------------------

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


# ---- other libraries -------------------------------------------------------------------------------------------------


def test_torchvision_on_files_that_are_there(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    with pytest.raises(DataError, match="CIFAR10 is not there"):
        load_data({"source": "torchvision", "dataset": "CIFAR10", "path": str(tmp_path)})

    # EuroSAT has no splits, and its files are plain images.
    for name, shade in (("Forest", RED), ("River", BLUE)):
        for i in range(4):
            picture(tmp_path / "eurosat" / "2750" / name / f"{name}_{i}.jpg", shade)
    spec = {"source": "torchvision", "dataset": "EuroSAT", "path": str(tmp_path)}
    with pytest.raises(DataError, match="no splits of its own"):
        load_data(spec)
    data = load_data({**spec, "parts": {"train": 0.5, "test": 0.5}})
    assert data.classes == ("Forest", "River") and sorted(labels(data, "test")) == [0, 0, 1, 1]
    red = next(s for s in data.split("train") if s.label == 0)
    assert colour(red)[0] > 200 > 50 > colour(red)[2]
    with pytest.raises(DataError, match="no dataset called 'EuroSta'") as caught:
        load_data("torchvision/EuroSta")
    assert "EuroSAT" in str(caught.value)


def test_torchvision_with_a_training_and_a_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(torchvision.datasets.VisionDataset):
        def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
            assert root == str(tmp_path) and not download
            self.targets = [0, 1, 2] if train else [2]

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.new("L", (2, 2), 100), self.targets[index]

    monkeypatch.setattr(torchvision.datasets, "Small", Small, raising=False)
    data = load_data({"source": "torchvision", "dataset": "Small", "path": str(tmp_path)})
    assert (labels(data), labels(data, "test")) == ([0, 1, 2], [2]) and len(data.classes) == 3
    assert colour(data.split("test")[0]) == (100, 100, 100)


def test_saved_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"img": datasets.Image(), "text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = {"img": [Image.new("RGB", (2, 2), RED)] * 2, "text": ["a", "b"], "label": [1, 0]}
    made = datasets.Dataset.from_dict(rows, features)
    datasets.DatasetDict({"train": made, "validation": made}).save_to_disk(str(tmp_path / "set"))
    images = load_data({"source": "datasets", "path": str(tmp_path / "set"), "image": "img"})
    assert (images.kind, images.classes) == ("images", ("no", "yes")) and list(images.splits) == ["train", "val"]
    assert labels(images) == [1, 0] and colour(images.split("val")[0]) == RED
    texts = load_data({"source": "datasets", "path": str(tmp_path / "set"), "texts": ["text"]})
    assert texts.kind == "texts" and [s.texts for s in texts.split("train")] == [("a",), ("b",)]
    pairs = load_data({"source": "datasets", "path": str(tmp_path / "set"), "image": "img", "texts": ["text"]})
    assert pairs.kind == "captions" and labels(pairs) == [None, None]
    with pytest.raises(DataError, match="which columns"):
        load_data(f"datasets/{tmp_path / 'set'}")
    with pytest.raises(DataError, match="no column 'txt'"):
        load_data({"source": "datasets", "path": str(tmp_path / "set"), "texts": ["txt"]})
    with pytest.raises(DataError, match="holds no saved dataset"):
        load_data({"source": "datasets", "path": str(tmp_path), "texts": ["text"]})


def test_saved_datasets_as_benchmarks_have_them(tmp_path: Path) -> None:
    """Labels that are names, and a test set whose labels are kept back."""
    datasets = pytest.importorskip("datasets")
    train = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": ["pos", "neg", "pos"]})
    datasets.DatasetDict({"train": train}).save_to_disk(str(tmp_path / "names"))
    named = load_data({"source": "datasets", "path": str(tmp_path / "names"), "texts": ["text"]})
    assert named.classes == ("neg", "pos") and labels(named) == [1, 0, 1]
    train, test = (datasets.Dataset.from_dict({"text": ["a", "b"], "label": given}) for given in ([0, 1], [-1, -1]))
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(str(tmp_path / "kept"))
    assert list(load_data({"source": "datasets", "path": str(tmp_path / "kept"), "texts": ["text"]}).splits) == [
        "train"
    ]
    odd = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, None]})
    odd.save_to_disk(str(tmp_path / "odd"))
    with pytest.raises(DataError, match="the label None is out of range"):
        load_data({"source": "datasets", "path": str(tmp_path / "odd"), "texts": ["text"]})


def test_digits() -> None:
    data = load_data("digits")
    known = load_digits()
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 1078, "val": 360, "test": 359}
    for sample in data.split("val"):
        assert sample.label == known.target[int(sample.name.split()[1])]
    sample = data.split("train")[0]
    assert sample.picture is not None
    red = torch.tensor(np.array(sample.picture()))[:, :, 0]
    image = torch.tensor(known.images[int(sample.name.split()[1])])
    assert torch.equal(red.long(), (image * 255 / 16).round().long())


def test_half_of_the_digits() -> None:
    data = load_data({"source": "digits", "choose": ["9", "5", "7"], "shots": 4})
    assert data.classes == ("9", "5", "7") and Counter(labels(data)) == {0: 4, 1: 4, 2: 4}


# ---- dSprites --------------------------------------------------------------------------------------------------------


@given(st.integers(0, POSSIBLE - 1))
def test_a_sprite_is_whole_and_where_its_label_says(number: int) -> None:
    of = latents(number)
    pixels = torch.tensor(np.array(drawn(of).convert("L")))
    assert set(pixels.unique().tolist()) == {0, 255}
    border = torch.cat([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert not border.any()
    rows, columns = pixels.nonzero(as_tuple=True)
    assert abs(columns.float().mean() - (16 + of.x * 32 / 31)) < 2.5
    assert abs(rows.float().mean() - (16 + of.y * 32 / 31)) < 2.5
    assert label(of, "location") == math.floor(of.x / 2) and label(of, "orientation") == math.floor(of.turn / 2.5)


def test_every_sprite_has_a_number_of_its_own() -> None:
    numbers = range(0, POSSIBLE, 997)
    assert len({latents(number) for number in numbers}) == len(numbers)


def test_sprites_are_split_as_in_vtab() -> None:
    data, again = load_data("dsprites/orientation"), load_data("dsprites/orientation")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 800, "val": 200, "test": 1000}
    assert data.splits == again.splits and len(data.classes) == 16
    assert len({s.name for split in data.splits.values() for s in split}) == 2000
    assert len(Counter(labels(data))) == 16
    other = load_data({"source": "dsprites", "label": "location", "seed": 1, "count": {"train": 3}})
    assert len(other.split("train")) == 3 and other.split("train")[0] != data.split("train")[0]


# ---- what is asked for -----------------------------------------------------------------------------------------------


def test_a_file_says_it_all(birds: Path, tmp_path: Path) -> None:
    file = tmp_path / "birds.yaml"
    file.write_text(f"source: images\npath: {birds}\nchoose: [robin]\nlimit: {{train: 2}}\n")
    data = load_data(file)
    assert data.classes == ("robin",) and len(data.split("train")) == 2
    assert load_data(str(file)).splits == data.splits


def test_domains_beside_the_one_that_is_trained_on(birds: Path, tmp_path: Path) -> None:
    """Domain generalisation: other test sets, one of them with a class alone."""
    for name in ("jay", "robin"):
        picture(tmp_path / "sketch" / "train" / name / "0.png")
        picture(tmp_path / "sketch" / "test" / name / "0.png")
    spec = {"source": "images", "path": str(birds), "shots": 1}
    tests = {
        "sketch": f"images/{tmp_path / 'sketch'}",
        "robins": {"source": "images", "path": str(tmp_path / "sketch"), "choose": ["robin"]},
    }
    data = load_data({**spec, "tests": tests})
    assert labels(data, "sketch") == [0, 1] and data.split("sketch").among is None
    assert labels(data, "robins") == [1] and data.split("robins").among == (1,)
    assert len(data.split("train")) == 2
    with pytest.raises(DataError, match="has no class 'robin'"):
        load_data({**spec, "choose": ["jay"], "tests": tests})


def test_samples_go_to_other_processes(birds: Path) -> None:
    """The workers of a data loader get them pickled."""
    for name in (f"images/{birds}", "digits", "dsprites"):
        sample = load_data(name).split("train")[0]
        again = pickle.loads(pickle.dumps(sample))
        assert again == sample and colour(again) == colour(sample)


REFUSALS: dict[str, tuple[Any, type[Exception], str]] = {
    "an unknown source": ("digit", DataError, "nearest: 'digits'"),
    "an unknown source with a path": ("image/birds", DataError, "nearest: 'images'"),
    "an unknown source in a mapping": ({"source": "tabel"}, DataError, "nearest: 'table'"),
    "no source": ({"path": "x"}, DataError, "no source of data called None"),
    "an unknown key": ({"source": "digits", "shot": 3}, SourceError, "nearest: 'shots'"),
    "a missing key": ({"source": "images"}, SourceError, "missing key 'path'"),
    "shares beyond one": (
        {"source": "digits", "parts": {"train": 0.8, "test": 0.4}},
        SourceError,
        "at most 1 together",
    ),
    "a share of nothing": ({"source": "digits", "parts": {"train": 0.0}}, SourceError, "shares above 0"),
    "no folder": ("images/nowhere/birds", DataError, "train/CLASS/IMAGE"),
    "a path of what has none": ("digits/here", DataError, "takes nothing"),
    "a label that is none": ("dsprites/colour", SourceError, "location"),
    "more shots than samples": ({"source": "digits", "shots": 500}, DataError, "500 samples of each class"),
    "no table": ("table/nowhere.xlsx", DataError, "train.csv"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    data, error, told = REFUSALS[case]
    with pytest.raises(error, match=re.escape(told)):
        load_data(data)


def test_a_folder_without_its_source_is_guessed(birds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(birds.parent)
    for place in ("birds", birds, Path("birds")):
        with pytest.raises(DataError, match=f"do you mean images/{place}"):
            load_data(place if isinstance(place, Path) else str(place))


def test_a_table_of_another_form(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("text\tlabel\n")
    with pytest.raises(DataError, match="cannot be read"):
        load_data(f"table/{tmp_path / 'train.tsv'}")


@pytest.mark.parametrize("spoil", [lambda p: p / "train" / "heron", lambda p: p / "test" / "heron"])
def test_an_empty_or_unknown_class(birds: Path, spoil: Callable[[Path], Path]) -> None:
    place = spoil(birds)
    place.mkdir()
    with pytest.raises(DataError, match=r"no images|not among those") as caught:
        load_data(f"images/{birds}")
    assert str(place) in str(caught.value)
