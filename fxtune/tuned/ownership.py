"""Which weights a tuned model shares with its original, and which are its own."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from fxtune.errors import PlanError
from fxtune.tuned.quantised import check_trainable
from fxtune.wrapped import is_wrapped, parts


def place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What two tensors have in common when they are the same memory, on the meta device too."""
    if is_wrapped(tensor):
        return (type(tensor), tensor.shape, *map(place, parts(tensor)))
    return (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride())


def tensors(*roots: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter and buffer of the roots by name, tied ones under each of their names."""
    for root in roots:
        for path, module in root.named_modules(remove_duplicate=False):
            for name, tensor in itertools.chain(module._parameters.items(), module._buffers.items()):
                if tensor is not None:
                    yield f"{path}.{name}" if path else name, tensor


def make_private(original: nn.Module, roots: Iterable[nn.Module], chosen: Callable[[str, torch.Tensor], bool]) -> None:
    """Give the chosen shared tensors memory of their own, holding the same values.

    Tensors that share one memory (tied weights) move together and stay tied.
    """
    theirs = {place(tensor) for _, tensor in tensors(original) if tensor.numel()}
    tied: dict[tuple[Any, ...], list[torch.Tensor]] = defaultdict(list)
    wanted: set[tuple[Any, ...]] = set()
    for name, tensor in tensors(*roots):
        key = place(tensor)
        if key in theirs:
            tied[key].append(tensor)
            if chosen(name, tensor):
                wanted.add(key)
    for key in wanted:
        copied = tied[key][0].detach().clone()
        for tensor in tied[key]:
            _fill(tensor, copied)


def _fill(tensor: torch.Tensor, copied: torch.Tensor) -> None:
    """Let a tensor lie over a copy's memory and stay the object that it is."""
    if not is_wrapped(tensor):
        tensor.data = copied
        return
    other = copied.detach()
    if isinstance(tensor, nn.Parameter):
        other = nn.Parameter(other, requires_grad=tensor.requires_grad)
    torch.utils.swap_tensors(tensor, other)  # type: ignore[no-untyped-call]


def set_trainable(model: nn.Module, names: Iterable[str]) -> None:
    """Let exactly the named parameters require grad (a tied one under any of its names)."""
    known = dict(model.named_parameters(remove_duplicate=False))
    names = list(names)
    if unknown := [name for name in names if name not in known]:
        raise PlanError(
            "Weights were chosen to train that the model does not have.",
            found=", ".join(unknown),
            fix="name parameters of the tuned model, as in its state_dict",
        )
    check_trainable({name: known[name] for name in names})
    training = {id(known[name]) for name in names}
    for parameter in known.values():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(id(parameter) in training)


def apply_once(roots: Iterable[nn.Module], fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """nn.Module._apply over several trees that hold the same tensors: each is mapped once and stays one tensor."""
    mapped: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def once(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in mapped:
            image = fn(tensor)
            # Two trees may share a dict, so an image comes by again and stays itself. The tensors are kept because an
            # id is only good while its object lives.
            mapped[id(tensor)], mapped[id(image)] = (tensor, image), (image, image)
        return mapped[id(tensor)][1]

    modules = {id(module): module for root in roots for module in root.modules()}.values()
    before = [(module, dict(module._parameters)) for module in modules]
    for module in modules:
        module._apply(once, recurse=False)  # type: ignore[no-untyped-call]
    # Where torch had to make a new Parameter (a device of another kind), every holder takes the first one made.
    first: dict[int, nn.Parameter] = {}
    for module, parameters in before:
        for name, old in parameters.items():
            new = module._parameters[name]
            if old is not None and new is not None and new is not old:
                module._parameters[name] = first.setdefault(id(old), new)
