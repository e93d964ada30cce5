"""How a detached bypass runs on a model, as its card says."""

from __future__ import annotations

from torch import nn

from fxtune.cards.card import BypassHints
from fxtune.cards.finding import find


def bypass(model: nn.Module) -> BypassHints:
    """What the model's card says about a bypass; nothing where there is no card."""
    card = find(model)
    return card.bypass if card else BypassHints()
