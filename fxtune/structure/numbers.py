"""Which numbers of a tensor are taken, and in what order."""

from __future__ import annotations

import math

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class Take(BaseModel):
    """Numbers at even steps inside of even steps: what a view of a tensor is.

    Attributes:
        offset: place of the first number.
        spans: how many, and the step from one to the next; the outermost first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    offset: int = Field(ge=0)
    spans: tuple[tuple[int, int], ...] = Field(max_length=16)

    @property
    def size(self) -> int:
        """How many numbers it takes."""
        return math.prod(size for size, _ in self.spans)

    def places(self) -> Tensor:
        """The place of each number, in order."""
        found = torch.tensor([self.offset], device="cpu")
        for size, step in self.spans:
            found = (found[:, None] + torch.arange(size, device="cpu") * step).flatten()
        return found

    def __str__(self) -> str:
        return "+".join([str(self.offset), *(f"{size}x{step}" for size, step in self.spans)])


def strided(places: Tensor) -> Take | None:
    """The even steps in which these places follow each other; None where there are none.

    Equal places have equal steps: each span is as long as it can be.
    """
    left = places.flatten()
    if left.numel() == 0:
        return Take(offset=0, spans=((0, 0),))
    spans: list[tuple[int, int]] = []
    while left.numel() > 1:
        steps = left[1:] - left[:-1]
        step = int(steps[0])
        uneven = (steps != step).nonzero()
        size = int(uneven[0]) + 1 if len(uneven) else left.numel()
        if left.numel() % size:
            return None
        runs = left.view(-1, size)
        if not torch.equal(runs, runs[:, :1] + torch.arange(size, device="cpu") * step):
            return None
        spans.insert(0, (size, step))
        left = runs[:, 0]
    return Take(offset=int(left), spans=tuple(spans))
