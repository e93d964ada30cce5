"""Copies and pickles of a tuned model: weights that it shares with its original are stored once and shared again."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import torch
from torch import nn

from fxtune.tuned.ownership import place, tensors
from fxtune.tuned.tuning import Tuning
from fxtune.tuned.twin import alias_buffer, alias_parameter


def copied_state(state: Tuning, memo: dict[int, Any]) -> Tuning:
    """A deep copy: the original is copied, and what lay over the original's weights lies over the copy's."""
    original = copy.deepcopy(state.original, memo)
    copies = dict(tensors(original))
    for tensor, name in _shared(state).values():
        memo[id(tensor)] = _alias(copies[name], name, tensor.requires_grad)
    return copy.deepcopy(state, memo)


def dump_state(state: Tuning, attributes: dict[str, Any]) -> bytes:
    """Everything but the original, with references in the place of the weights that lie in its memory."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL)
    pickler.persistent_id = _References(state)  # type: ignore[method-assign]
    pickler.dump((state, attributes))
    return buffer.getvalue()


def load_state(original: nn.Module, pickled: bytes) -> tuple[Tuning, dict[str, Any]]:
    unpickler = pickle.Unpickler(io.BytesIO(pickled))
    unpickler.persistent_load = _Referents(original)  # type: ignore[method-assign]
    loaded: tuple[Tuning, dict[str, Any]] = unpickler.load()
    return loaded


class _References:
    """Names what is in the original: a module by its path, a shared tensor by its name and the alias that it was."""

    def __init__(self, state: Tuning) -> None:
        self.modules = {id(module): path for path, module in state.original.named_modules()}
        self.aliases = {
            key: ("alias", index, name, tensor.requires_grad)
            for index, (key, (tensor, name)) in enumerate(_shared(state).items())
        }

    def __call__(self, value: Any) -> tuple[Any, ...] | None:
        if id(value) in self.modules and isinstance(value, nn.Module):
            return ("module", self.modules[id(value)])
        return self.aliases.get(id(value)) if isinstance(value, torch.Tensor) else None


class _Referents:
    def __init__(self, original: nn.Module) -> None:
        self.original = original
        self.tensors = dict(tensors(original))
        self.aliases: dict[int, torch.Tensor] = {}

    def __call__(self, reference: tuple[Any, ...]) -> Any:
        if reference[0] == "module":
            return self.original.get_submodule(reference[1])
        _, index, name, requires_grad = reference
        if index not in self.aliases:
            self.aliases[index] = _alias(self.tensors[name], name, requires_grad)
        return self.aliases[index]


def _shared(state: Tuning) -> dict[int, tuple[torch.Tensor, str]]:
    """The tuned model's tensors that lie in the original's memory, by id, with their names in the original."""
    names = {place(tensor): name for name, tensor in tensors(state.original) if tensor.numel()}
    mine = [tensor for _, tensor in tensors(*state.every_tree())]
    return {id(tensor): (tensor, names[place(tensor)]) for tensor in mine if place(tensor) in names}


def _alias(tensor: torch.Tensor, name: str, requires_grad: bool) -> torch.Tensor:
    if isinstance(tensor, nn.Parameter):
        return alias_parameter(tensor, name).requires_grad_(requires_grad)
    return alias_buffer(tensor, name)
