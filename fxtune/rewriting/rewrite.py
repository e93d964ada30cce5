"""Carrying out a patch: the one place where a captured graph changes."""

from __future__ import annotations

import torch
from torch import fx, nn

from fxtune.planning import BypassPlan, Insertion, Patch
from fxtune.rewriting.bypass import build_bypass, splice
from fxtune.rewriting.edits import carry_out
from fxtune.rewriting.growing import Changes
from fxtune.tracing import Region
from fxtune.tuners import build


def rewrite(root: fx.GraphModule, patch: Patch, *, dtype: torch.dtype = torch.float32) -> fx.GraphModule:
    """Puts the tuners of `patch` into a captured model and gives it back.

    The tuners are built first, all of them: if one cannot be built, the graphs are as they were.

    Args:
        root: the captured model that the patch was planned on; its regions change.
        patch: what changes.
        dtype: of the new weights.

    Raises:
        RuleError: a tuner refuses its settings or its place.
    """
    built = [_build(root, insertion, i, patch, dtype) for i, insertion in enumerate(patch.insertions)]
    bypass = patch.bypass and _build_bypass(root, patch.bypass, len(built), patch, dtype)
    changes = Changes(root)
    for insertion, tuner in zip(patch.insertions, built, strict=True):
        changes.region(insertion.region).tuners()[insertion.label] = tuner
        carry_out(insertion.edit, insertion, changes)
    if patch.bypass and bypass:
        splice(patch.bypass, bypass, changes)
    changes.finish()
    return root


def _build(root: fx.GraphModule, insertion: Insertion, number: int, patch: Patch, dtype: torch.dtype) -> nn.Module:
    """One seed for a call of `apply`; each tuner draws from a generator of its own, so that no tuner's draw depends on
    another's."""
    return build(
        insertion.tuner,
        insertion.settings,
        insertion.place,
        method=insertion.edit.method,
        seed=None if patch.seed is None else patch.seed + number,
        dtype=dtype,
        device=_device(root),
    )


def _build_bypass(root: fx.GraphModule, plan: BypassPlan, number: int, patch: Patch, dtype: torch.dtype) -> Region:
    seed = None if patch.seed is None else patch.seed + number
    return build_bypass(plan, seed=seed, dtype=dtype, device=_device(root))


def _device(root: nn.Module) -> torch.device:
    return next((p.device for p in root.parameters()), torch.device("cpu"))
