"""The Blocks of a tuned model, for what wraps them one by one."""

from __future__ import annotations

from fxtune.tracing import Region
from fxtune.tuned.checkpointing import block_regions
from fxtune.tuned.model import TunedModel


def blocks_of(tuned: TunedModel) -> list[Region]:
    """The modules that are Blocks, in their order: to be sharded, compiled or offloaded each by itself.

        >>> for block in blocks_of(tuned):
        ...     fully_shard(block)
        >>> fully_shard(tuned)

    Blocks that are no module of their own are not among them.
    """
    return block_regions(tuned._fxtune.every_graph(), tuned._fxtune.blocks)
