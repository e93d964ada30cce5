"""What drawn calls of operators are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

aten = torch.ops.aten
SIDE = st.sampled_from([2, 3, 4, 1])


@dataclass
class Drawn:
    """A call; with `item` the result is that item of what the operator returns."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    item: int | None = None
    only_shape: bool = False


Draw = Callable[..., Any]


def numbers(draw: Draw, *shape: int, whole: bool = False) -> Tensor:
    """Positive numbers, so that roots and logarithms are numbers, too."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    if whole:
        return torch.randint(0, 4, shape, generator=generator)
    return torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1


def shape(draw: Draw, least: int = 1, most: int = 4) -> list[int]:
    return draw(st.lists(SIDE, min_size=least, max_size=most))


def axis(draw: Draw, rank: int) -> int:
    return draw(st.integers(-rank, rank - 1))


def axes(draw: Draw, rank: int) -> list[int]:
    found = draw(st.lists(st.integers(0, rank - 1), min_size=1, max_size=rank, unique=True))
    return [axis - rank if draw(st.booleans()) else axis for axis in found]
