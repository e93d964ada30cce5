"""`apply`: the way through all rooms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from fxtune.api.drafting import Captured, RulesLike, capture_of, rule_sets_for
from fxtune.errors import PlanError
from fxtune.inspection import outcomes
from fxtune.names import resolve as resolve_model
from fxtune.planning import Form, Patch
from fxtune.saving import Made, Origin, computing_of, described, rule_files, standings_of
from fxtune.structure import Structured, structured
from fxtune.tracing import call_inputs
from fxtune.tuned import Recipe, Report, TunedModel


def apply(
    model: nn.Module | str,
    rules: RulesLike | Sequence[RulesLike],
    *,
    example_inputs: Any = None,
    head: str | None = None,
    num_classes: int | None = None,
    inplace: bool = False,
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
    batchnorm: Literal["frozen", "track"] = "frozen",
    form: Form = "unbound",
    optimize: bool = False,
    **overrides: Any,
) -> TunedModel:
    """Captures a model, finds what the rules name, and puts tuners there.

    Args:
        model: a model, or a name that the command line takes (``timm/vit_base_patch16_224``). It is not changed.
        rules: a shipped rule set's name, the path of a rule file, a dict of the same form, or a list of these.
        example_inputs: a tuple of arguments, a dict of keywords, or a pair of both; by default the model card's. Sizes
            of at least 2 become dynamic.
        head: module path of the head; by default the model card's, else the last Linear.
        num_classes: puts a new head for so many classes on the tuned model.
        inplace: let the model's own weights train where the rules train them, instead of private copies.
        seed: draws the new weights from a generator of their own.
        dtype: of the new weights.
        batchnorm: ``frozen`` keeps the statistics of every batch norm as they are; ``track`` lets them move, on
            private copies.
        form: ``unbound`` puts tuners beside the operations; ``original`` tangles them as their own papers do (more
            keys, a layer behind, a sum with a weight). Both have the same weights under the same names and compute
            the same.
        optimize: compute nothing that the result does not depend on: where a head reads one token, the last Block's
            queries, projection and FFN are computed for that token alone, in training and inference. Results are equal
            up to rounding. A module there gets and gives that token alone (B x 1 x D), which its hooks see; the noise
            of a dropout there is drawn for that token alone; a fused projection of queries, keys and values is no
            longer called as a module. `TunedModel.report` tells where, or why nothing could be left out.
        overrides: settings (``dim=20``) for every tuner that has them, and conditions (``blocks="0..5"``,
            ``drop=[3]``) for every rule.

    Returns:
        The tuned model: same forward, same return type, same state_dict keys, and the tuners' keys with the component
        ``tuners``.

    Raises:
        FxtuneError: what could not be done, where, and what to do about it. The model is then as it was.
    """
    model = resolve_model(model) if isinstance(model, str) else model
    _check_arguments(model, num_classes, dtype, batchnorm, form, optimize)
    check_untuned(model)
    rule_sets = rule_sets_for(model, rules, overrides)
    captured = capture_of(model, example_inputs=example_inputs, head=head, num_classes=num_classes, seed=seed)
    origin = Origin(
        rules=rule_files(rule_sets),
        head=head,
        num_classes=num_classes,
        dtype=str(dtype).removeprefix("torch."),
        batchnorm=batchnorm,
        form=form,
        optimize=optimize,
        inputs=None if example_inputs is None else described(*call_inputs(model, example_inputs)),
    )
    recipe = Recipe(rule_sets, captured.head, seed, dtype, form, optimize)
    sites, patch = recipe.plan(captured.graph)
    return build(model, captured, recipe, patch, origin, structured(captured.graph, sites.view), inplace=inplace)


def check_untuned(model: nn.Module) -> None:
    """Refuses a model that is tuned already."""
    if isinstance(model, TunedModel):
        raise PlanError(
            "this model is tuned already",
            found=f"{type(model).__name__} with {len(model.trainable)} trained tensors",
            fix="pass all rules at once as a list, or the original: tuned.strip()",
        )


def build(
    model: nn.Module,
    captured: Captured,
    recipe: Recipe,
    patch: Patch,
    origin: Origin,
    structure: Structured,
    *,
    inplace: bool = False,
) -> TunedModel:
    """Carries out a patch on a capture: the capture becomes the tuned model.

    Args:
        model: the original.
        captured: its capture.
        recipe: what the patch was planned by.
        patch: the plan.
        origin: the arguments that led here.
        structure: what the capture computes, whatever it is called.
        inplace: as for `apply`.
    """
    graph = captured.graph
    computing, standings = computing_of(graph), standings_of(patch, structure)
    notes = recipe.carry_out(graph, patch)
    weights = {path: _size(graph.get_submodule(path)) for path in patch.paths}
    tuners = [
        f"{path}.{name}"
        for path in patch.paths
        for name, weight in graph.get_submodule(path).named_parameters()
        if weight.requires_grad  # a tuner may hold fixed weights
    ]
    return TunedModel(
        original=model,
        twin=captured.twin,
        graph=graph,
        called=captured.called,
        rewrite=recipe,
        trains=[*tuners, *patch.trained],
        head=captured.head,
        blocks=list(patch.blocks),
        report=Report(type(model).__name__, outcomes(patch, weights), notes),
        batchnorm=origin.batchnorm,
        inplace=inplace,
        made=Made(origin, computing, tuple(patch.insertions), structure.structure, standings),
        tuners=patch.places,
        folding=patch.folding,
    )


def _check_arguments(
    model: object, num_classes: object, dtype: object, batchnorm: object, form: object, optimize: object
) -> None:
    """What annotations say, for callers without a type checker."""
    wrong = [
        (f"model={type(model).__name__}", "a torch.nn.Module, or a name such as 'timm/resnet50'")
        if not isinstance(model, nn.Module)
        else None,
        (f"num_classes={num_classes!r}", "a whole number of at least 1")
        if num_classes is not None and (type(num_classes) is not int or num_classes < 1)
        else None,
        (f"dtype={dtype!r}", "a floating dtype such as torch.float32")
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point)
        else None,
        (f"batchnorm={batchnorm!r}", "'frozen' or 'track'") if batchnorm not in ("frozen", "track") else None,
        (f"form={form!r}", "'unbound' or 'original'") if form not in ("unbound", "original") else None,
        (f"optimize={optimize!r}", "True or False") if not isinstance(optimize, bool) else None,
    ]
    for found, expected in filter(None, wrong):
        raise PlanError("apply cannot take this argument", found=found, fix=f"pass {expected}")


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
