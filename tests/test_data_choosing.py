"""What is taken of data: nothing is lost, doubled or mislabelled, and each class gets its share."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxtune.data import Data, Sample, Split, limited, parted, with_classes, with_shots, with_tests
from fxtune.errors import DataError

NAMES = ("ant", "bee", "cat", "dog")


def data_of(labels: list[int], **others: list[int]) -> Data:
    """Samples whose name says what their label was at first."""
    splits = {
        split: Split(tuple(Sample(f"{split} {i} {NAMES[label]}", label) for i, label in enumerate(found)))
        for split, found in ({"train": labels} | others).items()
    }
    return Data("things", "images", NAMES, splits)


def names(split: Split) -> list[str]:
    return [sample.name for sample in split]


def of_class(split: Split) -> Counter[str]:
    return Counter(sample.name.split()[-1] for sample in split)


labels = st.lists(st.integers(0, 3), min_size=1, max_size=60)
seeds = st.integers(0, 5)


@given(labels, st.lists(st.floats(0.05, 1), min_size=1, max_size=4), seeds)
def test_parts_share_out_each_class(found: list[int], weights: list[float], seed: int) -> None:
    shares = [weight / sum(weights) for weight in weights]
    data = data_of(found)
    parts = parted(data, dict(zip(("train", "val", "test", "more"), shares, strict=False)), seed).splits
    assert sorted(name for split in parts.values() for name in names(split)) == sorted(names(data.splits["train"]))
    for share, split in zip(shares, parts.values(), strict=True):
        for name, count in of_class(data.splits["train"]).items():
            assert abs(of_class(split)[name] - share * count) <= 1
    assert all(NAMES[s.label or 0] == s.name.split()[-1] for split in parts.values() for s in split)


@given(labels, seeds)
def test_what_is_left_of_parts_is_left_out(found: list[int], seed: int) -> None:
    parts = parted(data_of(found), {"train": 0.25, "test": 0.25}, seed).splits
    taken = [name for split in parts.values() for name in names(split)]
    assert len(taken) == len(set(taken)) <= len(found) / 2 + len(NAMES)


@given(labels, seeds)
def test_where_train_has_no_part_it_is_the_rest(found: list[int], seed: int) -> None:
    parts = parted(data_of(found, test=[0, 1]), {"val": 0.25}, seed).splits
    assert list(parts) == ["train", "val", "test"]
    assert sorted(names(parts["train"]) + names(parts["val"])) == sorted(names(data_of(found).splits["train"]))
    alone = parted(data_of(found), {"test": 1.0}, seed).splits
    assert list(alone) == ["test"] and len(alone["test"]) == len(found)


@given(labels, st.integers(1, 5), seeds)
def test_shots_of_each_class(found: list[int], shots: int, seed: int) -> None:
    data = data_of(found, test=[0, 1, 2, 3])
    present = Counter(NAMES[label] for label in found)
    if any(present[name] < shots for name in NAMES):
        with pytest.raises(DataError, match=f"{shots} samples of each class"):
            with_shots(data, shots, seed)
        return
    few = with_shots(data, shots, seed)
    assert of_class(few.splits["train"]) == dict.fromkeys(present, shots)
    assert len(set(names(few.splits["train"]))) == shots * len(present)
    assert few.splits["test"] == data.splits["test"]


@given(labels, st.integers(1, 70), seeds)
def test_limits_keep_the_share_of_each_class(found: list[int], most: int, seed: int) -> None:
    split = limited(data_of(found), {"train": most}, seed).splits["train"]
    assert len(split) == len(set(names(split))) == min(most, len(found))
    for name, count in Counter(NAMES[label] for label in found).items():
        assert abs(of_class(split)[name] - len(split) * count / len(found)) <= 2


@given(labels, st.permutations(NAMES), st.integers(1, 4))
def test_classes_are_counted_in_the_order_asked_for(found: list[int], order: list[str], count: int) -> None:
    taken = order[:count]
    data = with_classes(data_of(found), taken)
    assert data.classes == tuple(taken)
    kept = [name for name in names(data_of(found).splits["train"]) if name.split()[-1] in taken]
    assert names(data.splits["train"]) == kept
    assert all(taken[s.label or 0] == s.name.split()[-1] for s in data.splits["train"])


@given(labels, seeds, seeds)
def test_the_seed_alone_decides(found: list[int], one: int, other: int) -> None:
    drawn = [
        names(parted(data_of(found), {"train": 0.5, "test": 0.5}, seed).splits["train"]) for seed in (one, one, other)
    ]
    assert drawn[0] == drawn[1]


def test_other_seeds_draw_otherwise() -> None:
    few = {tuple(names(with_shots(data_of([0, 1, 2, 3] * 25), 5, seed).splits["train"])) for seed in range(5)}
    assert len(few) == 5


def test_another_test_set_is_matched_by_the_names_of_its_classes() -> None:
    data = data_of([0, 1, 2, 3], test=[0])
    other = with_classes(data_of([0], test=[3, 1, 3, 0]), ["dog", "bee"])  # counted as 0 and 1 there
    both = with_tests(data, "sketch", other)
    split = both.splits["sketch"]
    assert split.among == (1, 3)
    assert [(s.name.split()[-1], NAMES[s.label or 0]) for s in split] == [
        ("dog", "dog"),
        ("bee", "bee"),
        ("dog", "dog"),
    ]
    assert both.splits["test"] == data.splits["test"]


def test_another_test_set_with_all_classes_is_answered_from_all() -> None:
    both = with_tests(data_of([0, 1, 2, 3]), "v2", data_of([0], test=[2, 2]))
    assert both.splits["v2"].among is None


def test_classes_that_a_subset_lacks_are_no_answers() -> None:
    data = data_of([0, 1, 2, 3])
    some = Data("few", "images", NAMES, {"test": Split((Sample("x dog", 3),), among=(1, 3))})
    assert with_tests(data, "few", some).splits["few"].among == (1, 3)
    assert with_classes(some, ["dog", "cat"]).splits["test"].among == (0,)


def test_refusals() -> None:
    data = data_of([0, 1], test=[0])
    with pytest.raises(DataError, match="no split called 'tset'") as caught:
        data.split("tset")
    assert "nearest: 'test'" in str(caught.value)
    with pytest.raises(DataError, match="has no class 'dgo'") as caught:
        with_classes(data, ["dgo"])
    assert "nearest: 'dog'" in str(caught.value)
    with pytest.raises(DataError, match="already has"):
        parted(data, {"train": 0.5, "test": 0.5}, 0)
    with pytest.raises(DataError, match="already has a split 'test'"):
        with_tests(data, "test", data)
    with pytest.raises(DataError, match="has texts"):
        with_tests(data, "more", Data("words", "texts", NAMES, {"test": data.splits["test"]}))
    with pytest.raises(DataError, match="no split called 'val'"):
        limited(data, {"val": 3}, 0)
    with pytest.raises(DataError, match="is empty"):
        with_classes(data, ["cat"]).split("train")
