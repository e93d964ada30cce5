"""dSprites, drawn by its recipe."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_files import labels
from fxtune.data import load_data
from fxtune.data.sprites import POSSIBLE, drawn, label, latents


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
