"""Tuners put into the weights that they change, and taken out again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fxtune.errors import PlanError
from fxtune.matching import Weights
from fxtune.planning import Fold, Folding
from fxtune.rewriting import as_stored, out_by_in
from fxtune.tracing import Region
from fxtune.tuned.modes import follow
from fxtune.tuned.report import short_paths
from fxtune.tuned.tuning import Tuning
from fxtune.tuned.variants import captured, recipe_of, sharing_twin, variant
from fxtune.view import view
from fxtune.wrapped import is_wrapped, stand_in

Pair = tuple[Tensor | None, Tensor | None]
"""Weight and bias of an operation."""


def merged(state: Tuning) -> Tuning:
    """The same model, in which every tuner that can go there is in the weights of the operation that it changes.

    These weights are computed in float64, rounded once, and memory of their own. All other tensors are the very ones
    of the unmerged model, which is kept beside.

    Raises:
        PlanError: no tuner can go into weights; why.
    """
    folding, chained = state.folding, recipe_of(state).form == "original"
    if state.unmerged is not None:
        raise PlanError("this tuned model is merged already", fix="take its tuners out first: tuned.unmerge()")
    while folding.folds:
        twin = sharing_twin(state.twin)
        refused = _fold(twin, state.first, folding.folds, chained=chained)
        if not refused:
            graph, called = captured(state, twin)
            biased = _given_biases(twin, state.twin, folding.folds)
            refused = _unread(graph, biased)
        if not refused:
            try:
                done = variant(state, twin, graph, called, without=[fold.path for fold in folding.folds])
            except PlanError as error:
                if not biased:
                    raise
                refused = dict.fromkeys(biased, f"with a bias there {error.asked}")
            else:
                report = replace(state.report, notes=(*state.report.notes, _told(folding)))
                return replace(done, report=report, folding=Folding(), unmerged=state)
        folding = folding.without(refused)
    raise PlanError(
        "none of the tuners can go into the model's weights",
        found="".join(f"\n    {line}" for line in _reasons(folding)) or "there are none",
        fix="merge tuners that change weights, such as lora, ssf and bitfit, on single operations (`at: linear`)",
    )


def unmerged(state: Tuning) -> Tuning:
    """The model as it was before, with what has trained and the modes that were set since.

    Raises:
        PlanError: it is not merged.
    """
    before = state.unmerged
    if before is None:
        raise PlanError("this tuned model is not merged", fix="call merge() first")
    for theirs, ours in zip(state.twin.modules(), before.twin.modules(), strict=True):
        ours.training = theirs.training
    before.checkpoint(state.checkpointing)
    for graph in before.every_graph():
        follow(graph, state.first)
        before.dress(graph)
    return before


@torch.no_grad()
def _fold(twin: nn.Module, tuners: Region, folds: Sequence[Fold], *, chained: bool) -> dict[str, str]:
    """Puts tuners into the twin's weights; which could not go there, and why."""
    together: dict[tuple[str | None, str], list[Fold]] = defaultdict(list)
    for fold in folds:
        together[fold.weights.weight, fold.bias].append(fold)
    refused: dict[str, str] = {}
    for (weight_name, bias_name), group in together.items():
        weights = group[0].weights
        stored = _tensor(twin, weight_name), _tensor(twin, weights.bias)
        weight, bias = _changed(stored, group, tuners, chained=chained)
        reason = _misfit(weights, stored[0], weight, bias)
        if reason is not None:
            refused |= {fold.path: reason for fold in group}
            continue
        _put(twin, weight_name, weight, stored[0])
        _put(twin, bias_name, bias, stored[0] if stored[1] is None else stored[1])
    return refused


def _misfit(weights: Weights, stored: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> str | None:
    """Why an operation can't store what tuners have made of its weight and bias; None if it can."""
    if weight is not None and stored is not None and is_wrapped(stored):
        return f"`{weights.weight}` is quantised; merge on the model in floating point, and quantise the result"
    if bias is not None and weights.computed is not None:
        return "the operation's bias is computed"
    if weight is not None and weights.layout == "transposed":
        return f"`{weights.weight}` is that of a transposed convolution"
    return None


def _changed(stored: Pair, folds: Sequence[Fold], tuners: Region, *, chained: bool) -> Pair:
    """Weight and bias with all tuners of one operation in them; None for what none of them changes.

    In the original form each acts on what the one before has made of them. Unbound tuners all act on the operation's
    own, and what they change is added up.
    """
    layout = folds[0].weights.layout
    weight, bias = (None if tensor is None else _exact(tensor) for tensor in stored)
    own: Pair = (None if weight is None else out_by_in(weight, layout), bias)
    now = own
    for fold in sorted(folds, key=lambda fold: fold.behind):
        tuner: Any = tuners.get_submodule(fold.path)
        made: Pair = tuner.in_weights(*(now if chained else own))
        now = made if chained else (_sum(now[0], made[0], own[0]), _sum(now[1], made[1], own[1]))
    changed, moved = (None if new is old else new for new, old in zip(now, own, strict=True))
    return (None if changed is None or weight is None else as_stored(changed, weight, layout)), moved


def _exact(tensor: Tensor) -> Tensor:
    """In float64; of a quantised weight only the shape, which is enough to see whether a tuner changes it."""
    return (stand_in(tensor) if is_wrapped(tensor) else tensor).double()


def _sum(now: Tensor | None, made: Tensor | None, own: Tensor | None) -> Tensor | None:
    """``now + (made - own)``, where None is zero."""
    if made is own or made is None:
        return now
    change = made.double() if own is None else made.double() - own
    return change if now is None else now + change


def _tensor(root: nn.Module, name: str | None) -> Tensor | None:
    if name is None:
        return None
    path, _, last = name.rpartition(".")
    holder = root.get_submodule(path)
    return holder._parameters.get(last, holder._buffers.get(last))


def _put(root: nn.Module, name: str | None, value: Tensor | None, like: Tensor | None) -> None:
    """Lets a module hold a tensor under a name; one that is tied to others is parted from them."""
    if name is None or value is None or like is None:
        return
    path, _, last = name.rpartition(".")
    holder, tensor = root.get_submodule(path), value.to(like.dtype)
    if last in holder._buffers:
        holder._buffers[last] = tensor
    else:
        holder._parameters[last] = nn.Parameter(tensor, requires_grad=False)


def _given_biases(twin: nn.Module, before: nn.Module, folds: Sequence[Fold]) -> dict[str, str]:
    """The tuners that gave a bias to an operation without one, and its name."""
    return {
        fold.path: fold.bias
        for fold in folds
        if _tensor(before, fold.bias) is None and _tensor(twin, fold.bias) is not None
    }


def _unread(graph: Region, biased: Mapping[str, str]) -> dict[str, str]:
    """Those of them whose module computes without a bias."""
    if not biased:
        return {}
    read = {str(value.target) for value in view(graph).values if value.op in ("param", "buffer")}
    return {path: "its module computes without a bias" for path, name in biased.items() if name not in read}


def _told(folding: Folding) -> str:
    beside = "".join(f"\n    beside stay {line}" for line in _reasons(folding))
    return f"{len(folding.folds)} tuners are in the weights{beside}"


def _reasons(folding: Folding) -> list[str]:
    """What stops tuners, and which."""
    stopped: dict[str, list[str]] = defaultdict(list)
    for path, reason in folding.refused.items():
        stopped[reason].append(path)
    return [f"{short_paths(tuple(paths))}: {reason}" for reason, paths in stopped.items()]
