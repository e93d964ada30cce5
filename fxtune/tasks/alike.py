"""Which branches compute the same with weights of the same shapes, so that they run as one."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxtune.splitting import structure_of, tensors_of
from fxtune.tracing import Region

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def kind_of(branch: Region, reads: tuple[int, ...]) -> Hashable:
    """What two branches have in common if one can run with the other's weights.

    Args:
        branch: the branch.
        reads: which results of the trunk it reads.
    """
    if not _gives_tensors(branch):
        return id(branch)  # only tensors can be told apart by task
    shapes = tuple((name, tensor.shape, tensor.dtype, tensor.device) for name, tensor in tensors_of(branch).items())
    return (structure_of(branch), reads, shapes, tuple(map(_settings, branch.modules())))


def _gives_tensors(branch: Region) -> bool:
    results = branch.graph.output_node().args[0]
    several = results if isinstance(results, tuple | list) else (results,)
    return all(isinstance(result, fx.Node) for result in several)


def _settings(module: nn.Module) -> Hashable:
    """A module's class and plain attributes; of others, which object it is."""
    own = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
    if isinstance(module, fx.GraphModule):
        return module.code
    return type(module), tuple((name, _known(value)) for name, value in sorted(own.items()))


def _known(value: Any) -> Hashable:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, tuple | list):
        return tuple(map(_known, value))
    if isinstance(value, Tensor | nn.Module):
        return id(value)
    return getattr(value, "__func__", None) or id(value)
