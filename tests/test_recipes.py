"""Recipes: files that say how a model is trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fxtune.errors import SourceError
from fxtune.recipes import Recipe, load_recipe, shipped_recipes

LEAST = {"optimizer": {"lr": 0.1}, "epochs": 2, "batch": 8}


def test_shipped_recipes_are_read_and_say_what_they_are() -> None:
    found = {recipe.name: recipe for recipe in shipped_recipes()}
    assert set(found) == {"images", "text", "text_to_image"}
    assert all(recipe.about for recipe in found.values())
    images = found["images"]  # res-tuning.md, section 5
    assert (images.optimizer.name, images.optimizer.weight_decay) == ("adamw", 0.05)
    assert images.optimizer.lr in (0.05, 0.01, 0.005, 0.001)
    assert (images.schedule.shape, images.schedule.warmup, images.epochs, images.batch) == ("cosine", 10, 100, 32)


def test_a_mapping_a_file_and_a_recipe_are_the_same(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"fxtune": 1, "name": "recipe", **LEAST}))
    made = load_recipe(LEAST)
    assert load_recipe(file) == load_recipe(str(file)) == load_recipe(made) == made
    assert made.schedule.shape == "cosine" and made.optimizer.betas == (0.9, 0.999)


def test_changes_replace_what_the_recipe_says() -> None:
    changes = {"epochs": 3, "optimizer.lr": 0.5, "schedule.warmup": 1, "patience": 2}
    plain, changed = load_recipe("images"), load_recipe("images", changes)
    assert (changed.epochs, changed.optimizer.lr, changed.schedule.warmup, changed.patience) == (3, 0.5, 1.0, 2)
    assert changed.optimizer.weight_decay == plain.optimizer.weight_decay and changed.batch == plain.batch
    assert plain == load_recipe("images") and isinstance(changed, Recipe)


REFUSALS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "an unknown recipe": ("image", {}, "nearest: 'images'"),
    "an unknown key": ({**LEAST, "epoch": 3}, {}, "nearest: 'epochs'"),
    "an unknown key inside": ({**LEAST, "optimizer": {"lr": 0.1, "decay": 1}}, {}, "unknown key 'decay'"),
    "an unknown change": ("images", {"optimizer.learning_rate": 1}, "unknown key 'learning_rate'"),
    "a change inside of a number": ("images", {"epochs.more": 1}, "epochs"),
    "no epochs": ({**LEAST, "epochs": 0}, {}, "greater than or equal to 1"),
    "half an epoch": ({**LEAST, "epochs": 1.5}, {}, "integer"),
    "a learning rate of nothing": ("images", {"optimizer.lr": 0}, "greater than 0"),
    "a missing key": ({"epochs": 1, "batch": 1}, {}, "missing key 'optimizer'"),
    "a schedule that is none": ("images", {"schedule.shape": "cosin"}, "'cosine'"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    recipe, changes, told = REFUSALS[case]
    with pytest.raises(SourceError, match=re.escape(told)):
        load_recipe(recipe, changes)


def test_a_fault_in_a_file_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("fxtune: 1\nname: mine\noptimizer: {lr: 0.1}\nepochs: 2\nbach: 8\n")
    with pytest.raises(SourceError, match=rf"{file}:5:1: unknown key 'bach'[^$]*nearest: 'batch'"):
        load_recipe(file, {"epochs": 3})
