"""Short numbers for what a tensor or a text holds: equal for equal contents, different for others."""

from __future__ import annotations

import ctypes
import hashlib

from torch import Tensor

from fxtune.wrapped import is_wrapped, parts


def digest_of(tensor: Tensor) -> str:
    """A tensor's dtype, shape and numbers, in 32 hexadecimal digits; where and how it lies in memory is no matter.

    Of a tensor that wraps others, its kind and the digests of these.
    """
    if is_wrapped(tensor):
        inside = " ".join(map(digest_of, parts(tensor)))
        return digest_of_text(f"{type(tensor).__name__} {tensor.dtype} {tuple(tensor.shape)} {inside}")
    plain = tensor.detach().cpu().contiguous()
    made = hashlib.blake2b(f"{plain.dtype} {tuple(plain.shape)} ".encode(), digest_size=16)
    if plain.numel():
        raw = (ctypes.c_char * (plain.numel() * plain.element_size())).from_address(plain.data_ptr())
        made.update(raw)
    return made.hexdigest()


def digest_of_text(text: str, size: int = 16) -> str:
    """A text, in two hexadecimal digits for each byte of `size`."""
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()
