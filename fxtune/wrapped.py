"""Tensors that wrap others: quantised weights, say, which pass for floating ones and hold integers and scales.

Such a tensor says what is inside of it by PyTorch's own protocol for wrapper subclasses. Its outside has no memory: to
compare, to name a place in memory or to take a digest is to do so for each of the plain tensors within.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fxtune.errors import UnsupportedModelError


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a tensor is a wrapper around others."""
    return bool(is_traceable_wrapper_subclass(tensor))


def parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """The plain tensors that hold a tensor's numbers: those inside of a wrapper, else the tensor itself."""
    if not is_wrapped(tensor):
        return (tensor,)
    wrapper: Any = tensor
    names, _ = wrapper.__tensor_flatten__()
    return tuple(part for name in names for part in parts(getattr(tensor, name)))


def same_numbers(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold equal numbers, those of `other` cast to the dtype of `one`; in the same kind of wrapper
    if in any."""
    if is_wrapped(one) or is_wrapped(other):
        mine, theirs = parts(one), parts(other)
        alike = type(one) is type(other) and len(mine) == len(theirs)
        return alike and all(map(same_numbers, mine, theirs))
    return torch.equal(one.detach(), other.detach().to(one.device, one.dtype))


def check_plain(model: nn.Module, task: str) -> None:
    """Refuses a model with wrapped weights for a task that needs numbers it can write.

    Raises:
        UnsupportedModelError: which weight.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_wrapped(tensor):
            raise UnsupportedModelError(
                f"{task} needs a model in floating point",
                found=f"`{name}`, which is of type {type(tensor).__name__}",
                fix="pass the model as it is before it is quantised",
            )


def aliased(tensor: Tensor) -> Tensor:
    """Another tensor over the same memory, without autograd; `data` of a wrapper would be a copy."""
    return tensor.detach() if is_wrapped(tensor) else tensor.data


def stand_in(tensor: Tensor) -> Tensor:
    """A plain tensor of a wrapper's shape and dtype with one number in memory, for the time of a capture."""
    plain = torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)
    return nn.Parameter(plain, requires_grad=False) if isinstance(tensor, nn.Parameter) else plain
