"""Where a model's head is, as its card says."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from fxtune.cards.attributes import fill, read
from fxtune.cards.finding import find


def head(model: nn.Module) -> str | None:
    """Module path of the head, whose weights are the task's own; None where the card names none (see `headless`)."""
    card = find(model)
    return _first_with_weights(model, card.head or []) if card else None


def headless(model: nn.Module) -> bool:
    """Whether the card says that this model has no head: a base model, or one whose head is an identity.

    Then the last Linear of the graph is part of the backbone and must not be taken for a head.
    """
    card = find(model)
    if card is None or card.head is None:
        return False
    paths = [fill(model, path) for path in card.head]
    return None not in paths and head(model) is None


def logits(model: nn.Module) -> str | None:
    """Module path of the layer as wide as the number of classes: the head itself, or the last of its layers."""
    card = find(model)
    return _first_with_weights(model, [*card.logits, *(card.head or [])]) if card else None


def class_counts(model: nn.Module) -> tuple[str, ...]:
    """Dotted paths of the plain attributes on `model` that hold its number of classes."""
    card = find(model)
    return tuple(path for path in card.class_counts if isinstance(read(model, path), int)) if card else ()


def _first_with_weights(model: nn.Module, paths: Sequence[str]) -> str | None:
    for path in paths:
        filled = fill(model, path)
        module = read(model, filled) if filled else None
        if isinstance(module, nn.Module) and next(module.parameters(), None) is not None:
            return filled
    return None
