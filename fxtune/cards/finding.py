"""Which card is a model's."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import cache

from torch import nn

from fxtune import resources, source
from fxtune.cards.attributes import holds
from fxtune.cards.card import Card, Recognise
from fxtune.errors import SourceError


@cache
def shipped() -> tuple[Card, ...]:
    """All cards that fxtune ships, in the order of their file names.

    Raises:
        SourceError: a card's file is broken.
    """
    return tuple(source.load(path).validate(Card) for path in sorted(resources.models_dir().glob("*.yaml")))


def find(model: nn.Module) -> Card | None:
    """The card that names the class nearest to the model's own, else its library's card; None if no card fits.

    Raises:
        SourceError: two cards fit equally well.
    """
    ranks: dict[tuple[bool, int], Card] = {}
    for card in shipped():
        nearest = _nearest_class(card.recognise, model)
        if nearest is None:
            continue
        other = ranks.setdefault((card.fallback, nearest), card)
        if other is not card:
            raise SourceError(
                f"Two model cards claim {class_name(type(model))}",
                found=f"{other.card} and {card.card}",
                fix="narrow `recognise` in one of them",
            )
    return ranks[min(ranks)] if ranks else None


def class_name(cls: type) -> str:
    """``module.QualifiedName``."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _nearest_class(recognise: Recognise, model: nn.Module) -> int | None:
    """How many steps up the method resolution order the first class lies that the card names; None if there is none."""
    if any(fnmatchcase(class_name(type(model)), glob) for glob in recognise.excluding):
        return None
    if not holds(model, recognise.attributes):
        return None
    for steps, cls in enumerate(type(model).__mro__):
        if any(fnmatchcase(class_name(cls), glob) for glob in recognise.classes):
            return steps
    return None
