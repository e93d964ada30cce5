"""The way from a model and rules to a capture: what `apply`, `inspect` and `load` have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fxtune import cards, source
from fxtune.errors import PlanError
from fxtune.planning import last_linear
from fxtune.rules import RuleSet
from fxtune.rules import load as load_rules
from fxtune.tracing import Region
from fxtune.tuned import observed_capture, replace_head, structural_twin
from fxtune.tuners import resolve
from fxtune.view import view

RulesLike = str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class Captured:
    """A model's twin, with the new head if there is one, and its graph.

    Attributes:
        twin: what further graphs are captured from.
        graph: of the twin.
        called: paths of the modules that the forward called.
        head: module path of the head, if there is one.
    """

    twin: nn.Module
    graph: Region
    called: frozenset[str]
    head: str | None


def rule_sets_for(
    model: nn.Module, rules: RulesLike | Sequence[RulesLike], overrides: Mapping[str, Any]
) -> tuple[RuleSet, ...]:
    """The rule sets that are named, with overrides and the model card's hints in them."""
    hints = cards.bypass(model).model_dump()
    return tuple(rule_set.completed(**hints) for rule_set in resolve(load_rules(rules), overrides))


def capture_of(
    model: nn.Module,
    *,
    example_inputs: Any = None,
    head: str | None = None,
    num_classes: int | None = None,
    seed: int | None = None,
) -> Captured:
    """Captures a twin of the model, with a new head where `num_classes` asks for one."""
    if head is not None:
        _check_head(model, head)
    twin = structural_twin(model)
    head = head or cards.head(model)
    first = None
    if head is None and not cards.headless(model):
        first = observed_capture(twin, example_inputs)
        head = last_linear(view(first[0]))
    if num_classes is not None:
        layer = cards.logits(model) if head == cards.head(model) else head
        replace_head(twin, layer, num_classes, class_count_attributes=cards.class_counts(model), seed=seed)
        first = None  # the old head is in it
    return Captured(twin, *(first or observed_capture(twin, example_inputs)), head)


def _check_head(model: nn.Module, head: str) -> None:
    modules = {path: module for path, module in model.named_modules() if path}
    if head in modules and next(modules[head].parameters(), None) is not None:
        return
    near = source.nearest(head, modules)
    raise PlanError(
        f"head='{head}' is no module of {type(model).__name__} with weights",
        found="a module without weights" if head in modules else f"nearest: {', '.join(near) or 'none'}",
        fix="name the module that maps features to classes",
    )
