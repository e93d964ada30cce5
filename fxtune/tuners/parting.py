"""Tuners of a fused projection as tuners of its parts, and the way back.

A tuner whose output channels are apart from each other can be taken apart and put together again. Its class then has

==========================================  ==========================================================================
``parted(weights, rows)``                   the weights of the same tuner for these output channels alone
``joined(parts, rows, settings, compact)``  weights and settings of the tuner for the channels of all parts, each at its
                                            `rows`; the same ones for all sites of a rule if not `compact`, and as few
                                            as these numbers need if so
==========================================  ==========================================================================

as static methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fxtune.tuners.registry import find, offers

Weights = Mapping[str, Tensor]
Settings = Mapping[str, Any]


def can_part(name: str) -> bool:
    """Whether a tuner can be taken apart by output channels.

    Raises:
        RuleError: no tuner is called so; the closest names.
    """
    return offers(name, "parted") and offers(name, "joined")


def parted(name: str, weights: Weights, rows: Tensor) -> Weights:
    """The weights of the tuner `name` for some of its output channels; `rows` are their numbers."""
    found: Weights = find(name).cls.parted(weights, rows)  # type: ignore[attr-defined]
    return found


def joined(
    name: str, parts: Sequence[Weights], rows: Sequence[Tensor], settings: Settings, *, compact: bool
) -> tuple[Weights, Settings]:
    """The weights of the tuner `name` for the channels of all parts, and its settings."""
    found: tuple[Weights, Settings] = find(name).cls.joined(parts, rows, settings, compact)  # type: ignore[attr-defined]
    return found


def at_rows(parts: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """One tensor of all parts, each at its rows of the first axis."""
    whole = parts[0].new_zeros(sum(len(each) for each in rows), *parts[0].shape[1:])
    for part, each in zip(parts, rows, strict=True):
        whole[each] = part
    return whole


class PerChannel:
    """A tuner each of whose weights has a number an output channel."""

    @staticmethod
    def parted(weights: Weights, rows: Tensor) -> Weights:
        """Those of some channels."""
        return {name: weight[rows] for name, weight in weights.items()}

    @staticmethod
    def joined(
        parts: Sequence[Weights], rows: Sequence[Tensor], settings: Settings, compact: bool
    ) -> tuple[Weights, Settings]:
        """Those of all channels."""
        return {name: at_rows([part[name] for part in parts], rows) for name in parts[0]}, settings


def block_diagonal(parts: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """Parts D_i x r_i beside each other, each at its rows and zero elsewhere."""
    tall = [part.new_zeros(sum(len(each) for each in rows), part.shape[1]) for part in parts]
    for whole, part, each in zip(tall, parts, rows, strict=True):
        whole[each] = part
    return torch.cat(tall, 1)
