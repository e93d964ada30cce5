"""What a cache was made of and with, in a few words each: enough to refuse it elsewhere, and to say why."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxtune.caching.batches import Batch
from fxtune.tracing import Region


def weights_of(trunk: Region) -> dict[str, str]:
    """Every weight and buffer that a trunk computes with, by name: what is in it."""
    return {name: fingerprint(tensor) for name, tensor in sorted(_tensors(trunk))}


def structure_of(trunk: Region) -> str:
    """What a trunk computes, whatever its nodes are called."""
    lines = []
    place = {node: f"%{i}" for i, node in enumerate(trunk.graph.nodes)}
    for node in trunk.graph.nodes:
        args = _written((node.args, node.kwargs), place)
        what = "input" if node.op == "placeholder" else _target(node)
        module = repr(trunk.get_submodule(str(node.target))) if node.op == "call_module" else ""
        lines.append(f"{place[node]} {node.op} {what} {args} {module}")
    return _digest("\n".join(lines).encode())


def inputs_of(batch: Batch, again: Batch) -> dict[str, Any]:
    """What the model is given for the first samples, read twice in one way; only its form, where that differs."""
    one, two = ([fingerprint(tensor) for tensor in read.inputs()] for read in (batch, again))
    form = [[str(tensor.dtype), list(tensor.shape)] for tensor in batch.inputs()]
    return {"form": form, "values": one if one == two else None}


def same_inputs(one: Batch, other: Batch) -> bool:
    """Whether two reads of the same samples gave the same numbers."""
    pairs = list(zip(one.inputs(), other.inputs(), strict=False))
    return len(pairs) == len(one.inputs()) == len(other.inputs()) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in pairs
    )


def each_sample(batch: Batch) -> Tensor:
    """A number for what the model is given for each sample: 64 bits, as integers."""
    found = []
    for i in range(batch.size):
        parts = [tensor[i] for tensor in batch.inputs() if tensor.dim() and tensor.shape[0] == batch.size]
        found.append(int(_digest("".join(map(fingerprint, parts)).encode(), bytes=8), 16) - 2**63)
    return torch.tensor(found, dtype=torch.int64)


def fingerprint(tensor: Tensor) -> str:
    """A tensor's dtype, shape and bytes."""
    plain = tensor.detach().cpu().contiguous()
    raw = (ctypes.c_char * (plain.numel() * plain.element_size())).from_address(plain.data_ptr() or 1)
    made = hashlib.blake2b(f"{plain.dtype} {tuple(plain.shape)} ".encode(), digest_size=16)
    if plain.numel():
        made.update(raw)
    return made.hexdigest()


def _digest(text: bytes, bytes: int = 16) -> str:
    return hashlib.blake2b(text, digest_size=bytes).hexdigest()


def _tensors(trunk: Region) -> Iterator[tuple[str, Tensor]]:
    seen: set[str] = set()
    for node in trunk.graph.nodes:
        target = str(node.target)
        if node.op not in ("call_module", "get_attr") or target in seen:
            continue
        seen.add(target)
        home, _, last = target.rpartition(".")
        owner: Any = getattr(trunk.get_submodule(home), last)
        if isinstance(owner, Tensor):
            yield target, owner
        elif isinstance(owner, nn.Module):
            yield from ((f"{target}.{name}", tensor) for name, tensor in _state(owner).items())


def _state(module: nn.Module) -> Mapping[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _target(node: fx.Node) -> str:
    target: Any = node.target
    if isinstance(target, str | torch._ops.OpOverload):
        return str(target)
    return f"{target.__module__}.{target.__qualname__}" if hasattr(target, "__qualname__") else str(target)


def _written(value: Any, place: Mapping[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return place[value]
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_written(item, place)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"({', '.join(_written(item, place) for item in value)})"
    if isinstance(value, slice):
        return f"slice{_written((value.start, value.stop, value.step), place)}"
    return repr(value)
