"""Searching for the sizes of tuners: a supernet that has all of them, and an evolution of its sub-networks.

`Supernet` trains them together, `search` finds the best within a budget.
"""

from fxtune.searching.commands import asked_of
from fxtune.searching.evolution import Candidate
from fxtune.searching.search import Found, search
from fxtune.searching.slots import Slot
from fxtune.searching.supernet import Supernet

__all__ = ["Candidate", "Found", "Slot", "Supernet", "asked_of", "search"]
