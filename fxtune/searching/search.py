"""`search`: the best sub-network of a trained supernet within a budget of weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fxtune.digests import digest_of, digest_of_text
from fxtune.errors import InputError, PlanError
from fxtune.progress import progress as with_bar
from fxtune.searching.evolution import Candidate, Plan, best, candidates
from fxtune.searching.history import History
from fxtune.searching.slots import Sizes
from fxtune.searching.space import Space
from fxtune.searching.supernet import Supernet
from fxtune.tuned import TunedModel

Score = Callable[[TunedModel], float]
"""How good a tuned model is; more is better."""


@dataclass(frozen=True)
class Found:
    """What a search has found.

    Attributes:
        supernet: where it is from.
        sizes: the choice, one for each of the supernet's slots.
        score: its score.
        weights: how many weights its tuners have.
        rules: it as ordinary rule sets, for `fxtune.apply`.
        tuned: it as a tuned model of its own, with its part of the supernet's weights.
        history: every candidate that was scored, in order.
    """

    supernet: Supernet = field(repr=False)
    sizes: Sizes
    score: float
    weights: int
    rules: list[dict[str, Any]] = field(repr=False)
    tuned: TunedModel = field(repr=False)
    history: tuple[Candidate, ...] = field(repr=False)

    def __str__(self) -> str:
        scored = f"score {self.score:.6g}, {self.weights:,} weights in tuners; {len(self.history):,} candidates scored"
        return f"{scored}\n{self.supernet.told(self.sizes)}"


def search(
    supernet: Supernet | TunedModel,
    score: Score,
    *,
    budget: int,
    population: int = 50,
    generations: int = 20,
    parents: int = 10,
    mutants: int | None = None,
    crossovers: int | None = None,
    mutation: float = 0.2,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Found:
    """Finds the sizes with the best score whose tuners have at most `budget` weights, by evolution.

        >>> found = fxtune.search(supernet, accuracy, budget=640_000, folder="out/")
        >>> print(found)
        >>> tuned = fxtune.load(model, "out/")  # train it further, or use it as it is

    The published numbers are the defaults (Zhang, Zhou and Liu, Neural Prompt Search, 2022, and its code).

    Args:
        supernet: a trained one. Its weights stay as they are.
        score: is given the tuned model, which computes as the candidate does, and returns a number; more is better. It
            says for itself what mode the model is in and whether gradients are wanted.
        budget: the most weights that the tuners may have in all, those whose sizes are not open included. The head,
            the same for all candidates, does not count.
        population: candidates in a generation.
        generations: how many, the first, which is drawn at random, included.
        parents: how many of the best so far the next ones come from.
        mutants: candidates of a generation that are changed parents; half the population if None.
        crossovers: candidates that have each size from one of two parents; likewise. The rest is drawn at random.
        mutation: probability with which a size of a mutant is drawn anew.
        seed: of all that is drawn. With the same scores the same sub-network is found, bit for bit.
        folder: `history.jsonl` is written there as the search goes on, a line a candidate, and at its end the
            sub-network, as `TunedModel.save` does (`tuners.safetensors`, and `rules.yaml` to be read and applied). A
            search that was killed goes on where it was when it is called again.
        progress: whether a terminal shows how far it is.

    Raises:
        PlanError: no candidate keeps the budget; or an argument is none.
        RuleError: the supernet leaves no size open.
        InputError: a score is no finite number.
        CheckpointError: the folder holds another search, or can't be written to.
    """
    supernet = supernet if isinstance(supernet, Supernet) else Supernet(supernet)
    plan = _plan(
        population=population,
        generations=generations,
        parents=parents,
        mutants=mutants,
        crossovers=crossovers,
        mutation=mutation,
        seed=seed,
    )
    space = _space(supernet, budget)
    place = None if folder is None else Path(folder)
    history = History(place, _described(supernet, space, plan))
    sizes, scores = _best(supernet, score, space, plan, history, bar=progress)
    found = Found(
        supernet=supernet,
        sizes=sizes,
        score=scores[sizes],
        weights=space.weights(sizes),
        rules=supernet.rules(sizes),
        tuned=supernet.subnetwork(sizes),
        history=tuple(history.candidates),
    )
    if place is not None:
        found.tuned.save(place)
    return found


def _best(
    supernet: Supernet, score: Score, space: Space, plan: Plan, history: History, *, bar: bool
) -> tuple[Sizes, dict[Sizes, float]]:
    """The best choice, and the scores of all."""
    scores: dict[Sizes, float] = {}
    coming: Iterable[Candidate] = candidates(space, plan, scores)
    for number, candidate in enumerate(with_bar(coming, "Searching", plan.total) if bar else coming):
        known = history.known(number, candidate)
        if known is None:
            known = candidate.model_copy(update={"score": _scored(supernet, score, candidate.sizes)})
            history.add(known)
        assert known.score is not None
        scores[candidate.sizes] = known.score
    return best(space, scores)[0], scores


def _scored(supernet: Supernet, score: Score, sizes: Sizes) -> float:
    with supernet.narrowed(sizes) as tuned:
        given = score(tuned)
    try:
        number = float(given)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(
            "the score of a candidate is no finite number",
            found=f"{given!r} for the sizes {list(sizes)}",
            fix="let the score function return one number, such as the accuracy on validation data",
        )
    return number


def _plan(**given: Any) -> Plan:
    try:
        return Plan(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise PlanError(
            "search cannot take this argument", found=f"{first['loc'][0]}={first['input']!r}", fix=first["msg"]
        ) from None


def _space(supernet: Supernet, budget: int) -> Space:
    if type(budget) is not int:
        raise PlanError("search cannot take this argument", found=f"budget={budget!r}", fix="pass a whole number")
    space = supernet.space(budget)
    least = space.weights(space.smallest)
    if least > budget:
        raise PlanError(
            "no candidate keeps the budget",
            found=f"the smallest has {least:,} weights in its tuners, and the budget is {budget:,}",
            fix="raise the budget, or put smaller sizes among the `choices:` of the rules (0 leaves a tuner out)",
        )
    return space


def _described(supernet: Supernet, space: Space, plan: Plan) -> dict[str, Any]:
    """What must be the same for a search to be gone on with."""
    state = supernet.tuned.state_dict()
    weights = digest_of_text("\n".join(f"{name} {digest_of(tensor)}" for name, tensor in sorted(state.items())))
    return {
        "slots": {str(slot): list(slot.sizes) for slot in supernet.slots},
        "budget": space.budget,
        "plan": plan.model_dump(),
        "weights": weights,
    }
