"""From what a caller hands over (a shipped name, a path, a mapping) to a recipe, with changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fxtune import source
from fxtune.errors import SourceError
from fxtune.recipes.spec import Recipe
from fxtune.resources import recipes_dir
from fxtune.source import Document, nearest

RecipeLike = str | Path | Mapping[str, Any] | Recipe

USUAL = {"images": "images", "texts": "text", "captions": "text_to_image"}
"""The shipped recipe that is taken for each kind of data where none is named."""


def load_recipe(recipe: RecipeLike, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe that `recipe` names.

        >>> load_recipe("images", {"epochs": 10, "optimizer.lr": 0.005})

    Args:
        recipe: a shipped recipe's name; the path of a YAML file (a Path, or text that ends in .yaml or .yml); or a
            mapping of the same form, in which ``fxtune: 1`` and ``name`` may be left out.
        changes: values that replace the recipe's, by their dotted names.

    Raises:
        SourceError: there is no such recipe, with the closest names; or it says what no recipe takes.
    """
    if isinstance(recipe, Recipe):
        document = source.from_data(recipe.model_dump(mode="json"), f"the recipe {recipe.name}")
    else:
        document = _document(recipe)
    if not changes:
        return document.validate(Recipe)
    document.validate(Recipe)  # its own faults are told with its own lines
    return source.from_data(_changed(document.data, changes), f"{document.name}, changed").validate(Recipe)


def recipe_for(kind: str, recipe: RecipeLike | None, changes: Mapping[str, Any] | None = None) -> Recipe:
    """`load_recipe`, or where none is named the usual recipe for data of this kind: `images`, `texts`, `captions`."""
    return load_recipe(USUAL[kind] if recipe is None else recipe, changes)


def shipped_recipes() -> list[Recipe]:
    """All recipes that fxtune ships, by name."""
    return [source.load(path).validate(Recipe) for path in sorted(recipes_dir().glob("*.yaml"))]


def _document(recipe: str | Path | Mapping[str, Any]) -> Document:
    if isinstance(recipe, Mapping):
        return source.from_data({"fxtune": 1, "name": "recipe", **recipe}, "<recipe>")
    if isinstance(recipe, Path) or recipe.endswith((".yaml", ".yml")):
        return source.load(Path(recipe).expanduser())
    names = [path.stem for path in recipes_dir().glob("*.yaml")]
    if recipe in names:
        return source.load(recipes_dir() / f"{recipe}.yaml")
    near = nearest(recipe, names, 1)
    raise SourceError(
        f"no recipe is called {recipe!r}",
        found=f"the recipes {', '.join(sorted(names))}" + (f"; nearest: {near[0]!r}" if near else ""),
        fix="name one of them, or the path of a file of your own, which ends in .yaml",
    )


def _changed(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The data with values replaced at dotted names; names that no recipe has are left for its form to refuse."""
    made = dict(data)
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        if rest:
            inner = made.get(first, {})
            made[first] = _changed(inner if isinstance(inner, Mapping) else {}, {rest: value})
        else:
            made[first] = value
    return made
