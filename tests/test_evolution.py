"""Evolution over sizes: every candidate keeps the budget, and the best of a small space is found."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from fxtune.searching import Candidate
from fxtune.searching.evolution import Plan, candidates
from fxtune.searching.space import Space

# ---- evolution -----------------------------------------------------------------------------------------------------


@st.composite
def spaces(draw: st.DrawFn, slots: int = 4) -> Space:
    """Sizes with weights that grow, fixed ones, and a budget that the smallest keeps."""
    counts = []
    for _ in range(draw(st.integers(1, slots))):
        sizes = sorted(draw(st.sets(st.integers(0, 9), min_size=1, max_size=4)))
        steps = [draw(st.integers(0, 20)) for _ in sizes]
        counts.append(dict(zip(sizes, itertools.accumulate(steps), strict=True)))
    fixed = draw(st.integers(0, 30))
    least, most = (fixed + sum(end(c.values()) for c in counts) for end in (min, max))
    return Space(tuple(counts), fixed, draw(st.integers(least, most)))


def weighs(space: Space, sizes: tuple[int, ...]) -> int:
    total = space.fixed
    for counts, size in zip(space.counts, sizes, strict=True):
        total += counts[size]
    return total


def evolved(space: Space, plan: Plan, score: Callable[[tuple[int, ...]], float]) -> list[Candidate]:
    scores: dict[tuple[int, ...], float] = {}
    found = []
    for candidate in candidates(space, plan, scores):
        scores[candidate.sizes] = score(candidate.sizes)
        found.append(candidate)
    return found


def scores_by(seed: int, *, pairs: bool = False) -> Callable[[tuple[int, ...]], float]:
    """A number for each size, summed; with `pairs` one for neighbours, too."""
    values = random.Random(seed)
    table = {(slot, size): values.random() for slot in range(9) for size in range(10)}
    both = {(slot, a, b): values.random() for slot in range(9) for a in range(10) for b in range(10)}

    def score(sizes: tuple[int, ...]) -> float:
        total = sum(table[slot, size] for slot, size in enumerate(sizes))
        for slot, (a, b) in enumerate(itertools.pairwise(sizes)):
            total += both[slot, a, b] if pairs else 0
        return total

    return score


@given(spaces(), st.integers(0, 999), st.integers(1, 20), st.integers(1, 6), st.integers(0, 12), st.integers(0, 12))
def test_every_candidate_keeps_the_budget_and_comes_once(
    space: Space, seed: int, population: int, generations: int, mutants: int, crossovers: int
) -> None:
    plan = Plan(
        population=population, generations=generations, parents=3, mutants=mutants, crossovers=crossovers, seed=seed
    )
    found = evolved(space, plan, scores_by(seed))
    assert found and len(found) <= population * generations
    assert len({candidate.sizes for candidate in found}) == len(found)
    for candidate in found:
        assert all(size in counts for size, counts in zip(candidate.sizes, space.counts, strict=True))
        assert weighs(space, candidate.sizes) == candidate.weights <= space.budget
    for generation in range(generations):
        ways = [candidate.way for candidate in found if candidate.generation == generation]
        assert len(ways) <= population
        assert ways.count("mutation") <= (mutants if generation else 0)
        assert ways.count("crossover") <= (crossovers if generation else 0)


@given(spaces(), st.integers(0, 999), st.booleans())
def test_the_best_of_a_small_space_is_found(space: Space, seed: int, pairs: bool) -> None:
    """Against all there are: at most 256, of which the search scores as many as it can draw."""
    score = scores_by(seed, pairs=pairs)
    every = [sizes for sizes in itertools.product(*space.counts) if weighs(space, sizes) <= space.budget]
    found = evolved(space, Plan(population=30, generations=30, seed=seed), score)
    assert max(score(candidate.sizes) for candidate in found) == max(map(score, every))


@given(st.integers(0, 99))
@settings(max_examples=20)
def test_evolution_beats_chance(seed: int) -> None:
    """Of 4^9 choices, 400 are scored: the best is better than the best of 400 random ones."""
    counts = tuple({0: 0, 1: 1, 5: 5, 9: 9} for _ in range(9))
    space, score = Space(counts, 0, 50), scores_by(seed, pairs=True)
    found = evolved(space, Plan(population=40, generations=10, parents=8, seed=seed), score)
    by_chance = evolved(space, Plan(population=400, generations=1, seed=seed), score)
    assert len(found) == len(by_chance) == 400
    assert max(score(c.sizes) for c in found) > max(score(c.sizes) for c in by_chance)


def test_parents_are_the_best_so_far() -> None:
    """Without mutation and chance, every size of a crossover is a parent's."""
    space = Space(tuple(dict.fromkeys(range(8), 0) for _ in range(5)), 0, 0)
    score = scores_by(3)
    plan = Plan(population=20, generations=2, parents=2, mutants=0, crossovers=20, mutation=0.0)
    found = evolved(space, plan, score)
    first = sorted((c.sizes for c in found if c.generation == 0), key=score)[-2:]
    crossed = [c.sizes for c in found if c.way == "crossover"]
    assert crossed
    assert all(size in pair for sizes in crossed for size, *pair in zip(sizes, *first, strict=True))
