"""What an evolutionary search goes through: numbers, and no model."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from fxtune.searching.slots import Sizes


@dataclass(frozen=True)
class Space:
    """Every choice of sizes whose weights are within a budget.

    Attributes:
        counts: of each slot: size -> weights, the smallest first.
        fixed: weights that every choice has.
        budget: the most weights that a choice may have.
    """

    counts: tuple[Mapping[int, int], ...]
    fixed: int
    budget: int

    @property
    def smallest(self) -> Sizes:
        """The choice of the fewest weights."""
        return tuple(min(counts) for counts in self.counts)

    def weights(self, sizes: Sizes) -> int:
        """How many weights a choice has."""
        return self.fixed + sum(counts[size] for counts, size in zip(self.counts, sizes, strict=True))

    def drawn(self, rng: random.Random) -> Sizes:
        """A choice with each size drawn from its own, brought within the budget."""
        return self.within(tuple(rng.choice(list(counts)) for counts in self.counts), rng)

    def mutated(self, sizes: Sizes, rng: random.Random, probability: float) -> Sizes:
        """Each size drawn anew with this probability, and all brought within the budget."""
        changed = (
            rng.choice(list(counts)) if rng.random() < probability else size
            for counts, size in zip(self.counts, sizes, strict=True)
        )
        return self.within(tuple(changed), rng)

    def crossed(self, one: Sizes, other: Sizes, rng: random.Random) -> Sizes:
        """Each size from one of two choices, and all brought within the budget."""
        return self.within(tuple(rng.choice(pair) for pair in zip(one, other, strict=True)), rng)

    def within(self, sizes: Sizes, rng: random.Random) -> Sizes:
        """The choice itself where it keeps the budget; else one size after the other, drawn, goes a step down.

        To throw it away and draw again, as the published code does, may take for ever where the budget is small.
        """
        found, weights = list(sizes), self.weights(sizes)
        while weights > self.budget:
            i = rng.choice([i for i, counts in enumerate(self.counts) if found[i] > min(counts)])
            lower = max(size for size in self.counts[i] if size < found[i])
            weights -= self.counts[i][found[i]] - self.counts[i][lower]
            found[i] = lower
        return tuple(found)
