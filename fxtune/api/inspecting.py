"""`inspect`: what there is, and what rules would do to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fxtune.api.drafting import RulesLike, capture_of, rule_sets_for
from fxtune.inspection import Inspection, counted, outcomes
from fxtune.names import resolve as resolve_model
from fxtune.planning import Form
from fxtune.tuned import Recipe, Report


def inspect(
    model: nn.Module | str,
    rules: RulesLike | Sequence[RulesLike] | None = None,
    *,
    example_inputs: Any = None,
    head: str | None = None,
    num_classes: int | None = None,
    form: Form = "unbound",
    **overrides: Any,
) -> Inspection:
    """What a model has, and what rules would do to it: sites, near misses, weights to train.

    Takes what `apply` takes; a model given by name is built on the meta device, without its weights. Nothing is
    changed.
    """
    model = resolve_model(model, meta=True) if isinstance(model, str) else model
    rule_sets = rule_sets_for(model, rules or {"train": ["tuners"]}, overrides)
    captured = capture_of(model, example_inputs=example_inputs, head=head, num_classes=num_classes)
    recipe = Recipe(rule_sets, captured.head, None, torch.float32, form)
    sites, patch = recipe.plan(captured.graph)
    kinds = dict.fromkeys(["mha", "ffn", "block", "conv_mixer", *(rule.at for s in rule_sets for rule in s.rules)])
    report = None
    if rules is not None:
        weights = counted(patch)
        sizes = {name: p.numel() for name, p in captured.graph.named_parameters()}
        added = sum(weights.values())
        report = Report(type(model).__name__, outcomes(patch, weights)).counted(
            added + sum(sizes[name] for name in patch.trained), added + sum(sizes.values())
        )
    return Inspection(
        type(model).__name__,
        {kind: sites.of(kind) for kind in kinds},
        {kind: misses for kind in kinds if (misses := sites.near_misses(kind))},
        report,
        patch if rules is not None else None,
    )
