"""Several sets of tuners on one original, of which one is in use, or none."""

from __future__ import annotations

from fxtune.errors import PlanError
from fxtune.source import nearest
from fxtune.tuned.observing import RUN_HOOKS
from fxtune.tuned.tuning import Tuning
from fxtune.tuned.variants import captured, sharing_twin, variant


def add_set(state: Tuning, name: str, other: Tuning) -> None:
    """Puts another set beside the one in use.

    Raises:
        PlanError: the name is taken; or the other is tuned on another original, or has several sets itself.
    """
    if name in state.sets:
        raise PlanError(
            f"there is a set of tuners called {name!r} already",
            found=f"sets: {', '.join(state.sets)}",
            fix="choose another name",
        )
    if other.original is not state.original:
        raise PlanError(
            f"the set {name!r} is tuned on another model object",
            found=f"a {type(other.original).__name__} of its own",
            fix="apply or load both on the same model",
        )
    if len(other.sets) > 1:
        raise PlanError(
            f"the set {name!r} cannot be taken from a tuned model of several",
            found=f"sets: {', '.join(other.sets)}",
            fix="add each to this model by itself, as it was applied or loaded",
        )
    for each in other.states():
        _share_hooks(each, state)
        each.name, each.sets = name, state.sets
    state.sets[name] = other


def set_named(state: Tuning, name: str) -> Tuning:
    """The set of this name, in the mode of the one in use.

    Raises:
        PlanError: there is none; the nearest.
    """
    if name not in state.sets:
        near = nearest(name, state.sets, 3)
        raise PlanError(
            f"there is no set of tuners called {name!r}",
            found=f"sets: {', '.join(state.sets)}",
            fix=f"use {near[0]!r}" if near else 'put it in: tuned.add("name", another_tuned_model)',
        )
    found = state.sets[name]
    _follow(found, state)
    return found


def without_tuners(state: Tuning) -> Tuning:
    """The variant of a set without any of its tuners, in its mode."""
    if state.unmerged is not None:  # the merged model has tuners in its weights
        plain = without_tuners(state.unmerged)
        _follow(plain, state)
        return plain
    if state.plain is None:
        twin = sharing_twin(state.twin)
        state.plain = variant(state, twin, *captured(state, twin), without=state.tuners)
    _follow(state.plain, state)
    return state.plain


def check_on(state: Tuning, done: str) -> None:
    """Refuses what is done to tuners while they are off.

    Raises:
        PlanError: they are.
    """
    if state.off:
        raise PlanError(
            f"this tuned model cannot be {done} while its tuners are off",
            found=f"the set {state.name!r}, disabled",
            fix=f"leave disabled() first, or call use({state.name!r})",
        )


def _share_hooks(other: Tuning, state: Tuning) -> None:
    """A hook is put on the model, and runs whatever set is in use."""
    modules = dict(state.twin.named_modules())
    for path, module in other.twin.named_modules():
        for name in RUN_HOOKS if path in modules else ():
            hooks = modules[path].__dict__[name]
            hooks.update(module.__dict__[name])
            module.__dict__[name] = hooks
    for graph in other.every_graph():
        other.dress(graph)


def _follow(other: Tuning, state: Tuning) -> None:
    if other.twin.training != state.twin.training:
        other.set_mode(state.twin.training)
    if other.checkpointing != state.checkpointing:
        other.checkpoint(state.checkpointing)
