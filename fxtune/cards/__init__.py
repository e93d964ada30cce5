"""Model cards: what is known about a backbone family beyond its dataflow, as data (``models/*.yaml``).

A card says how a family is recognised, which example inputs its members take, and where their head is. A member that no
card of its own knows falls back to its library's card; a model that no card knows gives ``None`` here.
"""

from fxtune.cards.bypass import bypass
from fxtune.cards.card import BypassHints, Card, Small
from fxtune.cards.component import component
from fxtune.cards.finding import find, shipped
from fxtune.cards.head import class_counts, head, headless, logits
from fxtune.cards.inputs import example_inputs

__all__ = [
    "BypassHints",
    "Card",
    "Small",
    "bypass",
    "class_counts",
    "component",
    "example_inputs",
    "find",
    "head",
    "headless",
    "logits",
    "shipped",
]
