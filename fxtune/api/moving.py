"""A checkpoint on a model that computes what its backbone does, under other names or in other words."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from fxtune.api.drafting import Captured
from fxtune.errors import CheckpointError
from fxtune.interchange import Placed
from fxtune.matching import Sites
from fxtune.planning import Patch
from fxtune.rules import RuleSet
from fxtune.saving import (
    Checkpoint,
    Elsewhere,
    Origin,
    Stored,
    digests_by_node,
    moved_state,
    moved_tuners,
    other_structure,
    parts_of,
    resized,
    reworded,
    rule_files,
    weights_of,
)
from fxtune.structure import STATE, Structured, isomorphism, other_eps
from fxtune.tuned import Recipe, is_tuners


@dataclass(frozen=True)
class Planned:
    """What is to be made of a model, and what goes into it."""

    origin: Origin
    recipe: Recipe
    patch: Patch
    weights: Stored


def moved(
    model: nn.Module,
    captured: Captured,
    checkpoint: Checkpoint,
    recipe: Recipe,
    sites: Sites,
    structure: Structured,
    other_weights: Literal["warn", "refuse"],
) -> Planned:
    """The checkpoint's rules and weights in the model's own words.

    Args:
        model: the model.
        captured: its capture.
        checkpoint: the checkpoint.
        recipe: the rules as they are in the checkpoint.
        sites: the model's.
        structure: what it computes.
        other_weights: as for `load`.

    Raises:
        CheckpointError: it computes something else, or has another epsilon; or a tuner cannot be moved to it.
    """
    to = _elsewhere(model, checkpoint, structure, other_weights)
    _check_head(checkpoint, captured, to)
    stored = checkpoint.tensors()
    known = captured.graph.state_dict()
    state = moved_state({name: tensor for name, tensor in stored.items() if not is_tuners(name)}, known, to)
    names = [name for name, _ in captured.graph.named_parameters()]
    recipe, patch = _planned(recipe, reworded(recipe.rule_sets, sites, names, to), captured, sites)
    tuners = moved_tuners(stored, patch, to)
    recipe, patch = _planned(recipe, resized(recipe.rule_sets, tuners.settings), captured, sites)
    origin = checkpoint.origin.model_copy(
        update={
            "rules": rule_files(recipe.rule_sets),
            "head": None if checkpoint.origin.head is None else captured.head,
        }
    )
    return Planned(origin, recipe, patch, Placed(checkpoint.path, {**state, **tuners.weights}))


def _planned(recipe: Recipe, rule_sets: tuple[RuleSet, ...], captured: Captured, sites: Sites) -> tuple[Recipe, Patch]:
    changed = replace(recipe, rule_sets=rule_sets)
    return changed, changed.plan(captured.graph, sites)[1]


def _elsewhere(
    model: nn.Module, checkpoint: Checkpoint, here: Structured, other_weights: Literal["warn", "refuse"]
) -> Elsewhere:
    """The model as the place that the checkpoint moves to, its nodes those of the checkpoint's backbone."""
    there = checkpoint.backbone.structure
    replaced = {i for i, node in enumerate(there.nodes) if node.op == STATE and node.name in checkpoint.shapes}
    old = {i: digest for i, digest in checkpoint.backbone.digests().items() if i not in replaced}
    new = digests_by_node(here.structure, weights_of(model), parts_of(model, here.structure))
    nodes = isomorphism(there, here.structure, (old, new))
    if nodes is None:
        raise other_structure(there, here.structure, str(checkpoint.path))
    to = Elsewhere(str(checkpoint.path), there, checkpoint.backbone.tuners, here, nodes)
    _check_eps(to)
    _check_weights(to, old, new, other_weights)
    return to


def _check_eps(to: Elsewhere) -> None:
    """Another epsilon gives other numbers wherever a variance is small, and a model's code shows it nowhere."""
    odd = other_eps(to.there, to.here.structure, to.nodes)
    if odd is not None:
        raise CheckpointError(
            "these tuners were trained beside another epsilon",
            found=f"{odd.eps} in `{odd.name}`, which is `{odd.other_name}` here, with {odd.other_eps}",
            where=to.path,
            fix=f"build the model with {odd.eps} there (its configuration, or the module's eps)",
        )


def _check_weights(
    to: Elsewhere, old: Mapping[int, str], new: Mapping[int, str], other_weights: Literal["warn", "refuse"]
) -> None:
    changed = [i for i, digest in old.items() if new.get(to.nodes[i]) != digest]
    if not changed:
        return
    first = to.here.structure.nodes[to.nodes[changed[0]]].name
    error = CheckpointError(
        "these tuners were trained beside other weights of this backbone",
        found=f"{len(changed)} weights differ, the first is `{first}`, which was `{to.there.nodes[changed[0]].name}`",
        where=to.path,
        fix="load them on the pretrained model that they were tuned on",
    )
    if other_weights == "refuse":
        raise error
    warnings.warn(str(error), stacklevel=6)


def _check_head(checkpoint: Checkpoint, captured: Captured, to: Elsewhere) -> None:
    """The head that was named in the checkpoint must be the one that was found here: it trains, or is a new one."""
    head = checkpoint.origin.head
    if head is None:
        return
    there = {i for i, node in enumerate(to.there.nodes) if node.op == STATE and node.name.startswith(f"{head}.")}
    here = {
        i
        for i, node in enumerate(to.here.structure.nodes)
        if node.op == STATE and captured.head and node.name.startswith(f"{captured.head}.")
    }
    if {to.nodes[i] for i in there} != here:
        raise to.refused(
            f"its head `{head}` is another layer than this model's, `{captured.head}`",
            "load them on a model whose last linear map is that head",
        )
