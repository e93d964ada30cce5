"""What can be asked of any data, and what is said where they are not as asked."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import data_files
from data_files import colour, labels, picture
from fxtune.data import load_data
from fxtune.errors import DataError, SourceError


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    return data_files.birds(tmp_path)


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
