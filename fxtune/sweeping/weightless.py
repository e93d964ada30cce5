"""What is told of a sweep's model without its weights: whether the methods work on it, and what a step saves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxtune.accounting import memory
from fxtune.api import inspect
from fxtune.data import Data
from fxtune.errors import FxtuneError, MatchError, PlanError, RuleError
from fxtune.names import pipeline, resolve
from fxtune.recipes import Recipe
from fxtune.rules import load as load_rules
from fxtune.sweeping.cells import recipe_of
from fxtune.sweeping.spec import Sweep
from fxtune.training import denoised
from fxtune.tuned import one_capture


def check_methods(asked: Sweep, data: Data) -> None:
    """Sees that every method works on the model, as far as it can be captured without its weights.

    Raises:
        RuleError, MatchError, PlanError: one does not.
    """
    given = _given(data, recipe_of(asked, data, asked.settings))
    try:
        model = _model(asked, data)
        with one_capture():
            for rules in asked.rules:
                inspect(model, rules, **given)
    except (RuleError, MatchError, PlanError):
        raise
    except FxtuneError:  # a model that is made or runs by the values of its weights: its trainings tell
        return


def saved_bytes(asked: Sweep, rules: str | list[str], data: Data, point: Mapping[str, Any]) -> int | None:
    """Bytes that a step at a point of the grid saves for backward; None where that can't be told of this model."""
    recipe = recipe_of(asked, data, {**asked.settings, **point})
    try:
        report = memory(
            _model(asked, data),
            rules,
            batch=recipe.batch,
            autocast=None if recipe.precision == "float32" else recipe.precision,
            checkpointing=recipe.checkpointing,
            **_given(data, recipe),
        )
        return report[" + ".join(rule_set.name for rule_set in load_rules(rules))].saved_for_backward
    except FxtuneError:
        return None


def _model(asked: Sweep, data: Data) -> nn.Module:
    """What is tuned, on meta; of a pipeline the model that predicts noise."""
    if data.kind != "captions":
        return resolve(asked.model, meta=True, classifies=data.kind)
    whole = pipeline(asked.model)
    part: nn.Module = whole.components[denoised(whole)]
    return part.to("meta")


def _given(data: Data, recipe: Recipe) -> dict[str, Any]:
    """What the model is captured with, and the classes of its new head."""
    size = recipe.images.size
    return {
        "example_inputs": (torch.zeros(2, 3, size, size, device="meta"),) if data.kind == "images" else None,
        "num_classes": len(data.classes) or None,
    }
