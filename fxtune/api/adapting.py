"""LoRA from other libraries' files, as a tuned model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fxtune import cards
from fxtune.api.applying import build
from fxtune.api.drafting import capture_of, rule_sets_for
from fxtune.interchange import Adapter, Fitted, Placed, check_others, fitted, rules_of
from fxtune.matching import Sites
from fxtune.patterns import load_patterns
from fxtune.planning import Patch
from fxtune.saving import Origin, described, rule_files
from fxtune.structure import structured
from fxtune.tracing import call_inputs
from fxtune.tuned import Recipe, TunedModel, put
from fxtune.view import view


def adapted(model: nn.Module, adapter: Adapter, name: str, example_inputs: Any) -> TunedModel:
    """The tuned model that an adapter makes of a plain one.

    Args:
        model: the plain model.
        adapter: what was read.
        name: of the rule set that it becomes.
        example_inputs: as for `apply`.

    Raises:
        CheckpointError: the adapter is of another model.
    """
    check_others(adapter, model)
    head, classes = _new_head(adapter, model)
    captured = capture_of(model, example_inputs=example_inputs, head=head, num_classes=classes, seed=0)
    sites = Sites(view(captured.graph), load_patterns(()))
    at = fitted(adapter, sites, model)
    rule_sets = rule_sets_for(model, rules_of(adapter, at, model, name), {})
    origin = Origin(
        rules=rule_files(rule_sets),
        head=head,
        num_classes=classes,
        inputs=None if example_inputs is None else described(*call_inputs(model, example_inputs)),
    )
    recipe = Recipe(rule_sets, captured.head, 0, origin.torch_dtype, origin.form, origin.optimize)
    patch = recipe.plan(captured.graph, sites)[1]
    weights = {**adapter.others, **_named(patch, at)}
    tuned = build(model, captured, recipe, patch, origin, structured(captured.graph, sites.view))
    put(tuned, model, Placed(adapter.path, weights))
    return tuned


def _named(patch: Patch, at: Mapping[str, Fitted]) -> dict[str, Tensor]:
    """A and B under the names that the tuners give them."""
    weights: dict[str, Tensor] = {}
    for insertion in patch.insertions:
        found = at[insertion.site.path]
        weights |= {f"{insertion.path}.A": found.a, f"{insertion.path}.B": found.b}
    return weights


def _new_head(adapter: Adapter, model: nn.Module) -> tuple[str | None, int | None]:
    """Path and classes of the layer that the adapter replaces by one with another number of rows, if there is one; no
    path where it is the model's own head."""
    known = model.state_dict()
    rows = {
        name.rpartition(".")[0]: tensor.shape[0]
        for name, tensor in adapter.others.items()
        if tensor.ndim and tensor.shape[1:] == known[name].shape[1:] and tensor.shape[0] != known[name].shape[0]
    }
    if len(rows) != 1:
        return None, None  # more than a head: refused by name when the weights are put in their places
    ((path, classes),) = rows.items()
    return (None if path == cards.logits(model) else path), classes
