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


def checkpoint_blocks(graphs: Iterable[nn.Module], blocks: Iterable[str], options: dict[str, Any]) -> None:
    """Checkpoint each Block of each graph from now on.

    Args:
        blocks: the module paths of the Blocks.
        options: keywords for `torch.utils.checkpoint.checkpoint`.

    Raises:
        PlanError: no Block is a Region of its own.
        InputError: reentrant checkpointing was asked for.
    """
    options = {"use_reentrant": False, **options}
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
        _checkpoint(region, options)


def recompute(graph: nn.Module) -> None:
    """Let the Regions of a graph that are to compute their activations again in the backward pass do so."""
    for module in graph.modules():
        if isinstance(module, Region) and module.recomputed:
            _checkpoint(module, {"use_reentrant": False}, always=True)


def keep_activations(graphs: Iterable[nn.Module], blocks: Iterable[str]) -> None:
    for region in block_regions(graphs, blocks):
        region.recompile()


def block_regions(graphs: Iterable[nn.Module], blocks: Iterable[str]) -> list[Region]:
    wanted = set(blocks)
    found = {id(m): m for g in graphs for path, m in g.named_modules() if path in wanted and isinstance(m, Region)}
    return list(found.values())


def _checkpoint(region: Region, options: dict[str, Any], *, always: bool = False) -> None:
    """Put another forward on the region's class, its own as every GraphModule's is; `recompile` takes it off.

    Unless `always`, only what runs in training mode is checkpointed, as model libraries do. `torch.export` gets the
    plain forward: it would leave out what a checkpoint does, but for the part that runs without gradients.
    """
    region.recompile()
    plain = type(region).forward

    def forward(self: Region, *args: Any) -> Any:
        if torch.is_grad_enabled() and (always or self.training) and not torch.compiler.is_exporting():
            return checkpoint(functools.partial(plain, self), *args, **options)
        return plain(self, *args)

    type(region).forward = forward


class CheckpointingNames:
    """Gradient checkpointing of Blocks, under every name by which timm, transformers and diffusers ask for it.

    All of them raise PlanError where no Blocks are known, and InputError for what a tuned model can't do.
    """

    def _checkpoint_blocks(self, options: dict[str, Any] | None) -> None:
        raise NotImplementedError

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        _refuse(every_n_layers != 1, f"every_n_layers={every_n_layers}")
        _refuse(offload, "offload=True")
        self._checkpoint_blocks(dict(activation_checkpointing_kwargs or {}))

    def activation_checkpointing_disable(self) -> None:
        self._checkpoint_blocks(None)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **settings: Any
    ) -> None:
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **settings)

    def gradient_checkpointing_disable(self) -> None:
        self._checkpoint_blocks(None)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self._checkpoint_blocks({} if enable else None)

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any = None) -> None:
        _refuse(gradient_checkpointing_func is not None, "a gradient_checkpointing_func of its own")
        self._checkpoint_blocks({})

    def disable_gradient_checkpointing(self) -> None:
        self._checkpoint_blocks(None)

    @property
    def is_activation_checkpointing(self) -> bool:
        raise NotImplementedError

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.is_activation_checkpointing


def _refuse(given: bool, what: str) -> None:
    if given:
        raise InputError(
            "A tuned model checkpoints each of its Blocks with torch.utils.checkpoint, and nothing else.",
            found=what,
            fix="leave it out",
        )
