"""Drawn models with frozen and trained layers, aliases and in-place steps: hard to cut."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 6
UNARY = [
    "frozen",
    "trained",
    "relu",
    "first",
    "tail",
    "turned",
    "flattened",
    "dropped",
    "repeated",
]
IN_PLACE = ["add_", "relu_"]
BINARY = ["cat", "plus mean"]


class Program(nn.Module):
    """Runs steps on values B x n x 6, with a frozen layer and one that trains; returns the last three values."""

    def __init__(self, steps: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.steps = steps
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.trained = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        values = [x * 1, self.frozen(x)]
        for kind, a, b in self.steps:
            values.append(self.step(kind, values[a % len(values)], values[b % len(values)]))
        return (*values[-2:], self.trained(values[-1]))

    def extra_repr(self) -> str:
        return f"{self.steps}"

    def step(self, kind: str, v: Tensor, w: Tensor) -> Tensor:
        match kind:
            case "frozen" | "trained":
                return getattr(self, kind)(v)
            case "relu" | "relu_":
                return F.relu(v, inplace=kind == "relu_")
            case "add_":
                return v.add_(1)
            case "first":
                return v[:, 0].unsqueeze(1)
            case "tail":
                return v[:, -1:]
            case "turned":
                return v.transpose(1, 2).reshape(v.shape[0], WIDTH, -1).transpose(1, 2)
            case "flattened":
                return v.reshape(v.shape[0] * v.shape[1], WIDTH).view(v.shape[0], -1, WIDTH)
            case "repeated":
                return v[:, :1].expand(-1, w.shape[1], -1)
            case "dropped":
                return self.dropout(v)
            case "cat":
                return torch.cat([v, w], dim=1)
            case "plus mean":
                return v + w.mean(dim=1, keepdim=True)
        raise AssertionError(kind)


@st.composite
def programs(draw: Any) -> Program:
    kinds = st.sampled_from([*UNARY, *IN_PLACE, *BINARY])
    steps = draw(st.lists(st.tuples(kinds, st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=9))
    torch.manual_seed(draw(st.integers(0, 3)))
    return Program(steps)
