"""Gradient checkpointing of Blocks: their activations are computed again in the backward pass instead of kept."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fxtune.errors import InputError, PlanError
from fxtune.tracing import Region


def checkpoint_blocks(graphs: Iterable[nn.Module], blocks: Iterable[str], options: dict[str, Any] | None) -> None:
    """Checkpoint each Block of each graph from now on.

    Args:
        blocks: the module paths of the Blocks.
        options: keywords for `torch.utils.checkpoint.checkpoint`.

    Raises:
        PlanError: no Block is a Region of its own.
        InputError: reentrant checkpointing was asked for, which drops the gradient of tuners inside a Block whose input needs none.
    """
    options = {"use_reentrant": False, **(options or {})}
    if options["use_reentrant"]:
        raise InputError(
            "Reentrant checkpointing does not work on a tuned model.",
            found="use_reentrant=True, under which tuners get no gradient where a Block's input needs none",
            fix="leave use_reentrant out, or set it to False",
        )
    regions = block_regions(graphs, blocks)
    if not regions:
        raise PlanError(
            "Gradient checkpointing goes by Blocks, and none is known on this model.",
            fix="wrap parts of the model in torch.utils.checkpoint yourself",
        )
    for region in regions:
        region.__dict__["forward"] = functools.partial(_run, region, **options)


def keep_activations(graphs: Iterable[nn.Module], blocks: Iterable[str]) -> None:
    for region in block_regions(graphs, blocks):
        region.__dict__.pop("forward", None)


def block_regions(graphs: Iterable[nn.Module], blocks: Iterable[str]) -> list[Region]:
    wanted = set(blocks)
    found = {id(m): m for g in graphs for path, m in g.named_modules() if path in wanted and isinstance(m, Region)}
    return list(found.values())


def _run(region: Region, *args: Any, **options: Any) -> Any:
    forward = functools.partial(type(region).forward, region)
    if torch.is_grad_enabled() and region.training:
        return checkpoint(forward, *args, **options)
    return forward(*args)
