"""What a pipeline calls a model, as its card says."""

from __future__ import annotations

from torch import nn

from fxtune.cards.finding import find


def component(model: nn.Module) -> str | None:
    """The name of such a model in a pipeline, with which the names in the pipeline's LoRA files begin; None where its
    card says none."""
    card = find(model)
    return card.component if card else None
