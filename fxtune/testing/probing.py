"""What a rule set can do on a model, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from fxtune.api import RulesLike, apply
from fxtune.errors import FxtuneError, MatchError, PlanError, RuleError
from fxtune.progress import progress
from fxtune.rules import shipped
from fxtune.testing.assertions import assert_only_tuners_train
from fxtune.testing.equivalent import assert_equivalent
from fxtune.testing.models import SmallModel, families_of
from fxtune.tuned import TunedModel, one_capture

UNKNOWN = "unknown"
"""What could not be found out; the attempt ended in an error of another kind."""


@dataclass(frozen=True)
class Probe:
    """What was found, each in a word; an empty one where the rules do not apply.

    Attributes:
        applies: ``yes``, or ``no`` where the rules are refused.
        trains: ``yes`` where some steps move what the rules train and nothing else, else ``no``.
        merges: ``yes`` where all tuners go into the weights, ``partly``, or ``no``.
        verifies: ``yes`` where both forms agree; ``no`` where they do not; ``one form`` where there is one alone.
    """

    applies: str
    trains: str = ""
    merges: str = ""
    verifies: str = ""

    def __str__(self) -> str:
        """The abilities that it has."""
        if self.applies != "yes":
            return "" if self.applies == "no" else self.applies
        found = [(field.name, getattr(self, field.name)) for field in fields(self)[1:]]
        told = {"yes": "{}", "partly": "{} partly", UNKNOWN: "{}: unknown"}
        return ", ".join(told[word].format(name) for name, word in found if word in told) or "applies"


def probe(model: nn.Module, rules: RulesLike | Sequence[RulesLike], inputs: Any = None) -> Probe:
    """Tries a rule set on a model: applies, trains, merges, verifies.

    Args:
        model: any model; it comes out as it went in.
        rules: as for `fxtune.apply`.
        inputs: a tuple of arguments, a dict of keywords, or a pair of both; by default those of the model's card.
    """
    with one_capture():
        try:
            tuned = apply(model, rules, example_inputs=inputs, seed=0)
        except (MatchError, PlanError, RuleError):
            return Probe("no")
        except FxtuneError:
            return Probe(UNKNOWN)
        return Probe(
            "yes",
            trains=_tried(lambda: assert_only_tuners_train(model, rules, inputs)),
            merges=_merged(tuned),
            verifies=_verified(model, rules, inputs),
        )


def probe_catalogue(families: Sequence[str] | None = None, rules: Sequence[str] | None = None) -> str:
    """The catalogue as a table in Markdown: each shipped rule set, and what it can do on a small model of each family.

    Args:
        families: model cards; by default every family of which there is more than one member.
        rules: names of rule sets; by default all.

    Raises:
        FxtuneError: there is no such family, or its library is not installed.
    """
    about = {rule_set.name: rule_set.about.partition(". ")[0] for rule_set in shipped()}
    names, cards = rules or list(about), families_of(families)
    built = {card: SmallModel(card).build() for card in cards}
    tried = progress([(name, card) for name in names for card in cards], "Trying the methods")
    found = {(name, card): probe(built[card][0], name, built[card][1]) for name, card in tried}
    rows = [[f"`{name}`", about[name], *(str(found[name, card]) for card in cards)] for name in names]
    head = ["method", "", *cards]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _tried(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except AssertionError:
        return "no"
    except FxtuneError:
        return UNKNOWN
    return "yes"


def _merged(tuned: TunedModel) -> str:
    before = _tuners(tuned)
    if not before:
        return "no"
    try:
        tuned.merge()
    except PlanError:
        return "no"
    return "partly" if _tuners(tuned) else "yes"


def _verified(model: nn.Module, rules: RulesLike | Sequence[RulesLike], inputs: Any) -> str:
    try:
        original = apply(model, rules, example_inputs=inputs, form="original")
    except (RuleError, PlanError):
        return "one form"
    if not _tuners(original):
        return "one form"
    return _tried(lambda: assert_equivalent(model, rules, inputs, examples=1, dtypes=("float64",)))


def _tuners(tuned: TunedModel) -> list[str]:
    return [name for name in tuned.state_dict() if "tuners" in name.split(".")]
