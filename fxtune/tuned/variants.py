"""Another graph of a tuned model over the very same tensors: without some of its tuners."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch.utils._pytree as pytree
from torch import Tensor, nn

from fxtune.dtypes import dtype_of
from fxtune.errors import PlanError
from fxtune.tracing import Region
from fxtune.tuned.hooks import refuse_dead_hooks
from fxtune.tuned.modes import follow
from fxtune.tuned.observing import RUN_HOOKS, observed_capture, unlocked
from fxtune.tuned.recipe import Recipe
from fxtune.tuned.tuning import Tuning
from fxtune.tuned.twin import structural_twin


def recipe_of(state: Tuning) -> Recipe:
    """The rules by which a model was tuned.

    Raises:
        PlanError: it was tuned without any.
    """
    if not isinstance(state.rewrite, Recipe) or state.made is None:
        raise PlanError(
            "this tuned model can't be captured anew",
            found="nothing tells by which rules it was tuned",
            fix="make it with fxtune.apply",
        )
    return state.rewrite


def sharing_twin(twin: nn.Module) -> nn.Module:
    """Modules of their own that hold the very tensors and hooks of the twin's."""
    with unlocked(twin):
        other = structural_twin(twin)
    for theirs, ours in zip(twin.modules(), other.modules(), strict=True):
        ours._parameters.update(theirs._parameters)
        ours._buffers.update(theirs._buffers)
        for name in RUN_HOOKS:
            ours.__dict__[name] = theirs.__dict__[name]
    return other


def captured(state: Tuning, twin: nn.Module) -> tuple[Region, frozenset[str]]:
    """The graph of a twin, for inputs of the kinds that the model was captured with, and the modules it called.

    Inputs in the backbone's dtype are in the twin's, which may have been cast since.
    """
    assert state.made is not None
    then, now = dtype_of(state.original), dtype_of(twin)

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(now) if tensor.dtype == then else tensor

    return observed_capture(twin, pytree.tree_map_only(Tensor, cast, state.made.origin.example_inputs()))


def variant(
    state: Tuning, twin: nn.Module, graph: Region, called: frozenset[str], *, without: Collection[str]
) -> Tuning:
    """A tuned model of this twin with the tuners of `state`, these very modules, but for some.

    Args:
        state: the tuned model.
        twin: what further graphs are captured from.
        graph: of the twin; it becomes the tuned graph.
        called: the modules that the capture called.
        without: module paths of tuners to leave out.

    Raises:
        PlanError: the rules find other sites in this twin.
    """
    tuners = {path: place for path, place in state.tuners.items() if path not in without}
    recipe = replace(recipe_of(state), only=tuners)
    patch = recipe.plan(graph)[1]
    recipe.carry_out(graph, patch)
    for path in tuners:
        graph.set_submodule(path, state.first.get_submodule(path))
    refuse_dead_hooks(graph, called)
    done = replace(
        state,
        twin=twin,
        graphs={"forward": [graph]},
        rewrite=recipe,
        tuners=tuners,
        unmerged=None,
        plain=None,
    )
    done.settle(graph)
    follow(graph, state.first)
    return done
