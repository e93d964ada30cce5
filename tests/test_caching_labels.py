"""What a feature cache holds beside the features: labels of any form, which come back as they were given."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from fxtune.caching.layout import flatten, restore
from fxtune.errors import CacheError
from fxtune.tuned import TunedModel
from test_caching import COUNT, IMAGES, LABELS, images
from test_splitting import with_bypass


@pytest.fixture(scope="module")
def tuned() -> TunedModel:
    return with_bypass("vit")


NUMBERS = st.one_of(st.integers(-9, 9), st.booleans(), st.none(), st.text(max_size=3))
TEXTS = st.lists(st.text(max_size=3), min_size=3, max_size=3)
TENSORS = st.sampled_from([torch.arange(3), torch.rand(3, 2), torch.ones(3, 1, dtype=torch.bool)])
RESTS = st.recursive(
    NUMBERS | TEXTS | TENSORS,
    lambda inner: (
        st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
    ),
    max_leaves=5,
)


@given(RESTS)
def test_labels_of_any_form_come_back(rest: Any) -> None:
    if isinstance(rest, list) and rest and all(isinstance(item, str) for item in rest) and len(rest) != 3:
        return
    try:
        structure, arrays, texts = flatten(rest, 3)
    except CacheError:
        assert any(_texts_of_another_length(rest))
        return
    found = restore(json.loads(json.dumps(structure)), {**arrays, **texts})
    ours, theirs = pytree.tree_flatten(found), pytree.tree_flatten(rest)
    assert ours[1] == theirs[1]
    assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(ours[0], theirs[0], strict=True))


def _texts_of_another_length(rest: Any) -> Iterator[bool]:
    if isinstance(rest, dict):
        rest = list(rest.values())
    if isinstance(rest, list | tuple):
        yield bool(rest) and all(isinstance(item, str) for item in rest)
        for item in rest:
            yield from _texts_of_another_length(item)


def test_dicts_and_texts(tuned: TunedModel, tmp_path: Path) -> None:
    names = [f"image {i}" for i in range(COUNT)]
    batches = [
        {"pixels": IMAGES[i : i + 4], "name": names[i : i + 4], "more": (LABELS[i : i + 4], "train")} for i in (0, 4, 8)
    ]
    cache = tuned.cache_features(
        batches, tmp_path / "cache", split_batch=lambda b: (b["pixels"], {"name": b["name"], "more": b["more"]})
    )
    _, rest = next(iter(cache.loader(COUNT)))
    assert rest["name"] == names and torch.equal(rest["more"][0], LABELS) and rest["more"][1] == "train"
    assert cache[5][1] == {"name": "image 5", "more": (LABELS[5], "train")}


def test_other_labels_are_refused(tuned: TunedModel, tmp_path: Path) -> None:
    """Of images that are the same: tensors, texts, and plain numbers."""
    tuned.cache_features(images(), tmp_path / "cache")
    with pytest.raises(CacheError, match=r"another set of labels(.|\n)*differs for the first samples"):
        tuned.cache_features(DataLoader(TensorDataset(IMAGES, LABELS.flip(0)), batch_size=4), tmp_path / "cache")
    for name, of in (("numbers", lambda i: i), ("texts", str)):
        rest = [list(map(of, range(COUNT))), list(map(of, reversed(range(COUNT))))]
        cache = tuned.cache_features([(IMAGES, rest[0])], tmp_path / name)
        assert next(iter(cache.loader(COUNT)))[1] == rest[0] and cache[3][1] == of(3)
        with pytest.raises(CacheError, match="another set of labels"):
            tuned.cache_features([(IMAGES, rest[1])], tmp_path / name)


def test_going_on_with_other_labels_is_refused(tuned: TunedModel, tmp_path: Path) -> None:
    """The first batch is as it was; those after it are compared one by one."""
    names = [f"image {i}" for i in range(COUNT)]
    for of in (lambda some: LABELS[some], lambda some: names[some], lambda some: LABELS[some].tolist()):
        folder = tmp_path / "cache"
        batches = [(IMAGES[i : i + 2], of(slice(i, i + 2))) for i in range(0, COUNT, 2)]
        with pytest.raises(CacheError, match="not alike"):
            tuned.cache_features([*batches[:4], (IMAGES[:2], None)], folder, shard_bytes=1)
        other = [batches[0], (batches[1][0], batches[0][1]), *batches[2:]]
        with pytest.raises(CacheError, match=r"other inputs or labels(.|\n)*samples 2 to 3"):
            tuned.cache_features(other, folder, shard_bytes=1)
        assert len(tuned.cache_features(batches, folder, shard_bytes=1)) == COUNT
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("numbers", [[3, 1, 4, 1, 5], [True, False, True, True, False], [0.1, 2.5, 3.25, 1e300, 0.0]])
def test_labels_that_nobody_made_a_tensor_of(tuned: TunedModel, tmp_path: Path, kind: Any, numbers: list[Any]) -> None:
    """As a collate function of one's own leaves them, in batches of which the last is smaller."""
    batches = [(IMAGES[:5][i : i + 2], {"y": kind(numbers[i : i + 2])}) for i in (0, 2, 4)]
    cache = tuned.cache_features(batches, tmp_path / "cache", shard_bytes=1)
    for size in (1, 2, 3, 5):
        found = [y for _, rest in cache.loader(size) for y in rest["y"]]
        assert found == numbers and {type(y) for y in found} == {type(numbers[0])}
    assert type(next(iter(cache.loader(2)))[1]["y"]) is kind and cache[4][1]["y"] == numbers[4]


def test_a_number_that_is_too_large_is_refused(tuned: TunedModel, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"2\^63"):
        tuned.cache_features([(IMAGES[:2], [1, 2**63])], tmp_path / "cache")
