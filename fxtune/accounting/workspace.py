"""What the convolutions of a CPU take for themselves while they run, which no dispatch shows.

oneDNN computes them on copies: of plain (N x C x H x W) tensors in its own layout, and of weights in blocks of as many
channels as a register has numbers. A ConvNet's peak lies up to a sixth higher for it. What is here was seen on x86 with
AVX-512 and with AVX2; it is an estimate, and the only one that predictions for the CPU contain.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_FORWARD = torch.ops.aten.convolution.default
_BACKWARD = torch.ops.aten.convolution_backward.default
_WIDE = "AVX512" in torch.backends.cpu.get_cpu_capability()
_BLOCK = 16 if _WIDE else 8
_DIRECT = 4
"""Depth-wise kernels narrower than this have code of their own, which takes no blocked weights."""


def workspace(func: Any, args: tuple[Any, ...], out: Any) -> int:
    """Bytes at the operator's fullest moment beyond its arguments and results; 0 for all but convolutions."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return 0
    if func is _FORWARD:
        return _of_forward(args[0], args[1], out, args[3], args[-1])
    if func is _BACKWARD:
        return _of_backward(args[0], args[1], args[2], args[4], args[-2], args[-1])
    return 0


def _of_forward(x: Tensor, weight: Tensor, out: Tensor, stride: list[int], groups: int) -> int:
    """Copies of input and weight beside a result in oneDNN's layout, then that result twice."""
    if _pointwise(weight, stride):
        return 0
    if _channels_last(x):
        return weight.nbytes if _depthwise(weight, groups) else 2 * weight.nbytes
    return max(x.nbytes + weight.nbytes, out.nbytes)


def _of_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], groups: int, wanted: tuple[bool, bool, bool]
) -> int:
    """The gradient brought to the input's layout; then whichever of the two gradients takes more."""
    last = _channels_last(x)
    converted = 0 if last == _channels_last(grad) else grad.nbytes
    if _pointwise(weight, stride):
        return converted
    blocked = _blocked(weight, groups)
    of_input = of_weight = 0
    if _depthwise(weight, groups):
        direct = max(weight.shape[2:]) < _DIRECT
        of_input = 0 if last else x.nbytes
        of_weight = (0 if direct else blocked) if last else x.nbytes + grad.nbytes if direct else 0
    elif last:
        of_input, of_weight = 2 * blocked, 3 * blocked
    else:
        of_input = max(grad.nbytes + blocked - wanted[1] * weight.nbytes, x.nbytes)
        of_weight = max(x.nbytes + grad.nbytes + blocked - weight.nbytes, blocked)
    return converted + max(wanted[0] * of_input, wanted[1] * of_weight)


def _depthwise(weight: Tensor, groups: int) -> bool:
    return groups > 1 and weight.shape[1] == 1


def _pointwise(weight: Tensor, stride: list[int]) -> bool:
    """Whether it is a plain matrix product, which needs no copies."""
    return {*weight.shape[2:], *stride} == {1}


def _channels_last(tensor: Tensor) -> bool:
    return not tensor.is_contiguous() and tensor.stride(1) == 1


def _blocked(weight: Tensor, groups: int) -> int:
    """The weight's bytes in blocks of channels, those of each group for themselves; without AVX-512 depth-wise ones lie
    side by side."""
    if _depthwise(weight, groups) and not _WIDE:
        return weight.nbytes
    outer, inner = weight.shape[0] // groups, weight.shape[1]
    padded = groups * math.ceil(outer / _BLOCK) * math.ceil(inner / _BLOCK) * _BLOCK**2
    return padded * math.prod(weight.shape[2:]) * weight.element_size()
