"""Data that torchvision, datasets and scikit-learn read, on files that are written here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from data_files import BLUE, RED, colour, labels, picture
from fxtune.data import load_data
from fxtune.errors import DataError


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
