"""`apply` and `inspect`: the way through all rooms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import fx, nn

from fxtune import cards, source
from fxtune.errors import PlanError
from fxtune.hoisting import hoist
from fxtune.inspection import Inspection, counted, outcomes
from fxtune.matching import Sites
from fxtune.names import resolve as resolve_model
from fxtune.patterns import Library, load_patterns
from fxtune.planning import Form, Patch, last_linear, plan
from fxtune.rewriting import rewrite
from fxtune.rules import RuleSet, load
from fxtune.tracing import Region
from fxtune.tuned import Report, TunedModel, observed_capture, replace_head, structural_twin
from fxtune.tuners import resolve
from fxtune.view import view

RulesLike = str | Path | Mapping[str, Any]


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
    if isinstance(model, TunedModel):
        raise PlanError(
            "this model is tuned already",
            found=f"{type(model).__name__} with {len(model.trainable)} trained tensors",
            fix="pass all rules at once as a list, or the original: tuned.strip()",
        )
    draft = _draft(model, rules, overrides, example_inputs, head, num_classes, seed, dtype, form, optimize)
    patch = draft.patch
    graph = draft.graph
    notes = draft.recipe.carry_out(graph, patch)
    weights = {path: _size(graph.get_submodule(path)) for path in patch.paths}
    tuners = [
        f"{path}.{name}"
        for path in patch.paths
        for name, weight in graph.get_submodule(path).named_parameters()
        if weight.requires_grad  # a tuner may hold fixed weights
    ]
    return TunedModel(
        original=model,
        twin=draft.twin,
        graph=graph,
        called=draft.called,
        rewrite=draft.recipe,
        trains=[*tuners, *patch.trained],
        head=draft.recipe.head,
        blocks=list(patch.blocks),
        report=Report(type(model).__name__, outcomes(patch, weights), notes),
        batchnorm=batchnorm,
        inplace=inplace,
    )


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
    draft = _draft(
        model, rules or {"train": ["tuners"]}, overrides, example_inputs, head, num_classes, None, torch.float32, form
    )
    kinds = dict.fromkeys(
        ["mha", "ffn", "block", "conv_mixer", *(rule.at for s in draft.recipe.rule_sets for rule in s.rules)]
    )
    report = None
    if rules is not None:
        weights = counted(draft.patch)
        sizes = {name: p.numel() for name, p in draft.graph.named_parameters()}
        added = sum(weights.values())
        report = Report(type(model).__name__, outcomes(draft.patch, weights)).counted(
            added + sum(sizes[name] for name in draft.patch.trained), added + sum(sizes.values())
        )
    return Inspection(
        type(model).__name__,
        {kind: draft.sites.of(kind) for kind in kinds},
        {kind: misses for kind in kinds if (misses := draft.sites.near_misses(kind))},
        report,
        draft.patch if rules is not None else None,
    )


@dataclass(frozen=True)
class Recipe:
    """Rules, ready to be carried out on any capture of one model: what a further input signature needs."""

    rule_sets: tuple[RuleSet, ...]
    head: str | None
    seed: int | None
    dtype: torch.dtype
    form: Form
    optimize: bool = False

    def library(self) -> Library:
        """The shipped patterns and those of the rule files."""
        return load_patterns(self.rule_sets)

    def plan(self, graph: fx.GraphModule) -> tuple[Sites, Patch]:
        """The sites of a capture, and what the rules change there."""
        sites = Sites(view(graph), self.library())
        return sites, plan(graph, sites, self.rule_sets, head=self.head, seed=self.seed, form=self.form)

    def carry_out(self, graph: Region, patch: Patch) -> tuple[str, ...]:
        """Puts the tuners of a patch in, and leaves out what is then not needed; gives what people should know."""
        rewrite(graph, patch, dtype=self.dtype)
        if not self.optimize and patch.bypass is None:
            return ()
        # A bypass acts on each token alone; what it detaches, the trunk, is optimised only where that is asked for.
        return (str(hoist(graph, through_detach=self.optimize)),)

    def __call__(self, graph: Region) -> Region:
        """The capture with its tuners in."""
        self.carry_out(graph, self.plan(graph)[1])
        return graph


@dataclass(frozen=True)
class _Draft:
    """A call of `apply` up to the patch."""

    twin: nn.Module
    graph: Region
    called: frozenset[str]
    sites: Sites
    patch: Patch
    recipe: Recipe


def _draft(
    model: nn.Module,
    rules: RulesLike | Sequence[RulesLike],
    overrides: Mapping[str, Any],
    example_inputs: Any,
    head: str | None,
    num_classes: int | None,
    seed: int | None,
    dtype: torch.dtype,
    form: Form,
    optimize: bool = False,
) -> _Draft:
    hints = cards.bypass(model).model_dump()
    rule_sets = tuple(rule_set.completed(**hints) for rule_set in resolve(load(rules), overrides))
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
    graph, called = first or observed_capture(twin, example_inputs)
    recipe = Recipe(rule_sets, head, seed, dtype, form, optimize)
    sites, patch = recipe.plan(graph)
    return _Draft(twin, graph, called, sites, patch, recipe)


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


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
