"""Recipes: how a tuned model is trained, as files. They import no torch."""

from __future__ import annotations

from fxtune.recipes.loading import USUAL, RecipeLike, load_recipe, recipe_for, shipped_recipes
from fxtune.recipes.spec import Images, Optimizer, Recipe, Schedule, Texts

__all__ = [
    "USUAL",
    "Images",
    "Optimizer",
    "Recipe",
    "RecipeLike",
    "Schedule",
    "Texts",
    "load_recipe",
    "recipe_for",
    "shipped_recipes",
]
