"""The small models that the model cards name."""

from collections.abc import Iterator

from fxtune import cards
from fxtune.testing.models import build

__all__ = ["build", "small_models"]


def small_models() -> Iterator[tuple[str, cards.Small]]:
    """An identifier and the description of every small model."""
    for card in cards.shipped():
        for number, small in enumerate(card.small):
            yield f"{card.card}-{number}", small
