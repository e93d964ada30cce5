"""Example inputs as a model's card describes them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from fxtune.cards.attributes import holds, read
from fxtune.cards.card import Card, Input, Size
from fxtune.cards.finding import class_name, find
from fxtune.errors import InputError


def example_inputs(
    model: nn.Module, *, seed: int = 0, batch: int | None = None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments for a forward of `model`, on its device and in its floating dtype.

    Batch and text length are unequal and at least 2, so that neither is taken for a constant. The values are drawn
    from a generator of their own and are the same on every call.

    Args:
        model: any model that a card knows.
        seed: of the values.
        batch: samples, where they are to be more or fewer than the card says.

    Raises:
        InputError: no card knows the model, or its configuration lacks a size that the card needs.
    """
    card = find(model)
    if card is None:
        raise InputError(
            "No example inputs are known for this model",
            found=f"no model card for {class_name(type(model))}",
            fix=f"pass {_example_call(model)}",
        )
    device, dtype = _device_and_dtype(model)
    sizes = _Sizes(card, model, {} if batch is None else {"batch": batch})
    generator = torch.Generator().manual_seed(seed)
    args: list[Tensor] = []
    kwargs: dict[str, Any] = {}
    for entry in card.inputs:
        if not holds(model, entry.when):
            continue
        value = _draw(entry, sizes, dtype, generator).to(device)
        if entry.positional:
            args.append(value)
        else:
            _put(kwargs, entry.name, value)
    return tuple(args), kwargs


class _Sizes:
    """The sizes of one card on one model, read when asked for: a part that is left out needs none of its sizes."""

    def __init__(self, card: Card, model: nn.Module, given: Mapping[str, int]) -> None:
        self._card, self._model, self._given = card, model, given

    def __getitem__(self, size: str | int) -> int:
        known = {**self._card.sizes, **self._given}[size] if isinstance(size, str) else size
        return known if isinstance(known, int) else self._read(str(size), known)

    def _read(self, name: str, size: Size) -> int:
        values = (read(self._model, path) for path in size.read)
        found = next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), size.default)
        if found is None:
            model = f"{class_name(type(self._model))} (model card {self._card.card!r})"
            raise InputError(
                f"No example inputs are known for this model: it does not tell its {name!r}",
                found=f"no number at {', '.join(size.read)} of {model}",
                fix=f"pass {_example_call(self._model)}",
            )
        return found - sum(times * self[other] for other, times in size.minus.items())


def _draw(entry: Input, sizes: _Sizes, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    shape = [sizes[size] for size in entry.shape]
    if entry.values == "normal":
        return torch.randn(shape, generator=generator).to(dtype)
    if entry.values == "integers":
        assert entry.below is not None  # the card's schema says so
        return torch.randint(0, sizes[entry.below], shape, generator=generator)
    mask = torch.ones(shape, dtype=torch.int64)
    mask[-1, ..., -1] = 0
    return mask


def _device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    tensors: Iterator[Tensor] = chain(model.parameters(), model.buffers())
    floating = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
    return floating.device, floating.dtype


def _put(kwargs: dict[str, Any], name: str, value: Tensor) -> None:
    *outer, last = name.split(".")
    for key in outer:
        kwargs = kwargs.setdefault(key, {})
    kwargs[last] = value


def _example_call(model: nn.Module) -> str:
    """What could be passed, with the names that the model's own forward gives its arguments."""
    parameters = inspect.signature(model.forward).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [p.name for p in parameters if p.name in names and p.default is p.empty]
    text = ", ".join(f'"{name}": torch.randn(2, ...)' for name in needed or names[:1] or ["x"])
    return (
        f"example_inputs=(torch.randn(2, 3, 224, 224),), or by keyword example_inputs={{{text}}}, a batch of at least 2"
    )
