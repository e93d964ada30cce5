"""Inputs for an example: drawn like the example inputs, in every size that the captured graphs take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxtune.tracing import CallSignature
from fxtune.verifying.example import Example

_TRIES = 32


@dataclass(frozen=True)
class Call:
    """One call of a model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    places: dict[int, str]
    """The place of each tensor, ``x`` or ``added['ids']``, by its id."""

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Call:
        """The call with other tensors in it."""
        places: dict[int, str] = {}

        def one(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            changed = change(leaf)
            places[id(changed)] = self.places[id(leaf)]
            return changed

        args, kwargs = pytree.tree_map(one, (self.args, self.kwargs))
        return Call(args, kwargs, places)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by place."""
        leaves = (leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor))
        return {self.places[id(leaf)]: leaf for leaf in leaves}


class Inputs:
    """Draws calls that every given signature accepts.

    The batch and lengths vary: each dynamic dimension of an input, save the last ones of four-dimensional inputs
    (images keep their size, for which small ones are refused by the models' own code). Floating inputs are normal, in
    the size of the example's; inputs of zeros and ones with two or more dimensions are masks that keep a random number
    of the first or the last entries, one at least; other integers are drawn from the example's, which are in the
    vocabulary.
    """

    def __init__(self, signatures: Sequence[CallSignature], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._signatures = signatures
        tensors = signatures[0].bind(args, kwargs)
        described = signatures[0].tensors()
        self._usual = Call(args, kwargs, {id(t): place for t, (place, _) in zip(tensors, described, strict=True)})
        self._axes, self._ranges = _varying(signatures[0], tensors)
        self._masked = any(map(_is_mask, tensors))

    def example(self, seed: int) -> Example:
        """An example with random sizes."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(_TRIES):
            sizes = {
                key: int(torch.randint(1, most + 1, (), generator=generator)) for key, most in self._ranges.items()
            }
            if self.fits(example := Example(seed=seed, sizes=sizes)):
                return example
        return Example(seed=seed)  # conditions of the model's code that hardly any sizes fulfil

    def draw(self, example: Example) -> Call:
        """The call of an example, floating tensors in float64."""
        generator = torch.Generator().manual_seed(example.seed + 1)
        return self._usual.mapped(lambda like: _draw(like, self._shape(like, example), example.padded, generator))

    def smaller(self, example: Example) -> Iterator[Example]:
        """Simpler examples than this one that can be called with, the simplest first."""
        sizes = {**{key: self._size(key) for key in self._ranges}, **example.sizes}
        changes = [
            Example(seed=example.seed, sizes={**sizes, key: size}, padded=example.padded)
            for key, old in sizes.items()
            for size in dict.fromkeys((1, old // 2, old - old // 4, old - 1))
            if 0 < size < old
        ]
        if example.padded and self._masked:
            changes.append(example.model_copy(update={"padded": False}))
        yield from filter(self.fits, changes)

    def fits(self, example: Example) -> bool:
        """Whether the captured graphs take inputs of these sizes."""
        call = self._usual.mapped(lambda like: like.new_empty(self._shape(like, example)))
        return all(signature.accepts(call.args, call.kwargs) is None for signature in self._signatures)

    def _shape(self, like: Tensor, example: Example) -> list[int]:
        return [example.sizes.get(self._axes.get((id(like), axis), ""), size) for axis, size in enumerate(like.shape)]

    def _size(self, key: str) -> int:
        tensors = pytree.tree_leaves((self._usual.args, self._usual.kwargs))
        sizes = {(id(t), axis): size for t in tensors if isinstance(t, Tensor) for axis, size in enumerate(t.shape)}
        return next(sizes[place] for place, name in self._axes.items() if name == key)


def _varying(signature: CallSignature, tensors: list[Tensor]) -> tuple[dict[tuple[int, int], str], dict[str, int]]:
    """The key of each (tensor, axis) that varies, and the largest size of each key."""
    keys: dict[str, str] = {}
    axes: dict[tuple[int, int], str] = {}
    most: dict[str, int] = {}
    for index, (tensor, (place, dims)) in enumerate(zip(tensors, signature.tensors(), strict=True)):
        for axis, symbol in enumerate(dims):
            if not isinstance(symbol, str) or (axis > 0 and len(dims) > 3):
                continue
            # The exporter lets two batches differ that no operator compares; they are one.
            name = "batch of all" if axis == 0 and index in signature.batched else symbol
            key = axes[id(tensor), axis] = keys.setdefault(name, f"{place}.shape[{axis}]")
            low, high = signature.bounds.get(symbol, (None, None))
            wanted = max(4, 2 * tensor.shape[axis], low or 1)
            most[key] = min(most.get(key, wanted), wanted, high or wanted)
    return axes, most


def _draw(like: Tensor, shape: list[int], padded: bool, generator: torch.Generator) -> Tensor:
    values = like.detach().cpu()
    if _is_mask(values):
        drawn = _mask(shape, padded, generator).to(values.dtype)
    elif not values.is_floating_point() or not bool(values.isfinite().all()):
        drawn = values.flatten()[torch.randint(values.numel(), shape, generator=generator)]
    else:
        size = float(values.double().square().mean().sqrt()) or 1.0
        drawn = size * torch.randn(shape, generator=generator, dtype=torch.float64)
    drawn = drawn.double() if drawn.is_floating_point() else drawn
    return drawn.to(like.device)


def _is_mask(values: Tensor) -> bool:
    return values.dim() > 1 and bool(((values == 0) | (values == 1)).all())


def _mask(shape: list[int], padded: bool, generator: torch.Generator) -> Tensor:
    """True where something is: the first or the last so many of the last dimension, one at least."""
    length = shape[-1]
    kept = torch.randint(1, length + 1, (*shape[:-1], 1), generator=generator)
    left = bool(torch.randint(2, (), generator=generator))
    mask = torch.arange(length).expand(shape) < kept
    return (mask.flip(-1) if left else mask) if padded else torch.ones_like(mask)
