"""Evolution of sizes: Zhang, Zhou and Liu (2022), after AutoFormer (Chen et al., ICCV 2021).

A population is drawn; the best of all so far are parents; mutants and crossovers of them, and further random ones, are
the next. Published: 50 a population, 20 populations, 10 parents, 25 mutants and 25 crossovers, each size changed with
probability 0.2. There a mutation changes how many layers a tuner has, and a crossover takes all sizes of a tuner from
one parent; here every size is a choice of its own, 0 among them, as in AutoFormer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fxtune.searching.slots import Sizes
from fxtune.searching.space import Space

Way = Literal["random", "mutation", "crossover"]
_TRIES = 10
"""For each new choice that is wanted: where so many are known already, fewer will do."""


class Plan(BaseModel):
    """How long and how to search.

    Attributes:
        population: choices in a generation.
        generations: how many, the first, random one included.
        parents: how many of the best so far the next ones come from.
        mutants: of a generation; the crossovers too. Half the population each where they are None.
        crossovers: likewise.
        mutation: probability with which a mutant's size is drawn anew.
        seed: of everything that is drawn.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    population: Annotated[int, Field(ge=1)] = 50
    generations: Annotated[int, Field(ge=1)] = 20
    parents: Annotated[int, Field(ge=1)] = 10
    mutants: Annotated[int, Field(ge=0)] | None = None
    crossovers: Annotated[int, Field(ge=0)] | None = None
    mutation: Annotated[float, Field(ge=0, le=1)] = 0.2
    seed: int = 0

    @property
    def total(self) -> int:
        """How many choices are scored at most."""
        return self.population * self.generations


class Candidate(BaseModel):
    """A choice that is to be scored, or was.

    Attributes:
        generation: in which it was made, from 0 on.
        way: how.
        sizes: the choice.
        weights: how many weights its tuners have.
        score: None before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    generation: int
    way: Way
    sizes: Sizes
    weights: int
    score: Annotated[float, Field(allow_inf_nan=False)] | None = None


def candidates(space: Space, plan: Plan, scores: Mapping[Sizes, float]) -> Iterator[Candidate]:
    """Every choice to score, each once and all within the budget.

    What comes depends on the plan and the scores alone: the same scores bring the same candidates.

    Args:
        space: where they come from.
        plan: how.
        scores: of all that have come, by sizes; filled by the caller before it asks for the next.
    """
    rng = random.Random(plan.seed)
    seen: set[Sizes] = set()
    for generation in range(plan.generations):
        made = list(_generation(space, plan, rng, best(space, scores)[: plan.parents], seen))
        if not made:
            return  # all there are, as far as can be told by drawing
        for way, sizes in made:
            yield Candidate(generation=generation, way=way, sizes=sizes, weights=space.weights(sizes))


def best(space: Space, scores: Mapping[Sizes, float]) -> list[Sizes]:
    """All that were scored, the best first; of equal ones that of fewer weights."""
    return sorted(scores, key=lambda sizes: (-scores[sizes], space.weights(sizes), sizes))


def _generation(
    space: Space, plan: Plan, rng: random.Random, parents: list[Sizes], seen: set[Sizes]
) -> Iterator[tuple[Way, Sizes]]:
    """New choices, of which `seen` is then told."""

    def mutant() -> Sizes:
        return space.mutated(rng.choice(parents), rng, plan.mutation)

    def crossover() -> Sizes:
        return space.crossed(rng.choice(parents), rng.choice(parents), rng)

    def drawn() -> Sizes:
        return space.drawn(rng)

    half = plan.population // 2
    mutants = half if plan.mutants is None else plan.mutants
    crossovers = half if plan.crossovers is None else plan.crossovers
    ways: list[tuple[Way, Callable[[], Sizes], int]] = [("random", drawn, plan.population)]
    if parents:
        ways = [("mutation", mutant, mutants), ("crossover", crossover, crossovers), *ways]
    left = plan.population
    for way, make, wanted in ways:
        for sizes in _new(make, min(wanted, left), seen):
            left -= 1
            yield way, sizes


def _new(make: Callable[[], Sizes], wanted: int, seen: set[Sizes]) -> Iterator[Sizes]:
    """Up to so many choices that were not seen before."""
    for _ in range(_TRIES * wanted):
        if wanted == 0:
            return
        sizes = make()
        if sizes not in seen:
            seen.add(sizes)
            wanted -= 1
            yield sizes
