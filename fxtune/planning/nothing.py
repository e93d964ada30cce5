"""What to say where no rule matched anything: what was asked for, what the model has, and what would go on it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from fxtune.errors import MatchError
from fxtune.matching import Sites
from fxtune.planning.patch import RulePlan
from fxtune.rules import Rule, RuleSet, shipped
from fxtune.tuners import joins_rows

ATTENTION = "mha"
"""What prompt rows need, wherever they join."""


def nothing_matched(rules: Sequence[RulePlan], rule_sets: Sequence[RuleSet], sites: Sites) -> MatchError:
    """The error.

    Args:
        rules: what became of each rule.
        rule_sets: where they were written.
        sites: the model's sites.
    """
    lines = [f"{rule.text}: {rule.skipped}" for rule in rules]
    lines += [f"near miss, {miss.kind}: {miss}" for rule in rules for miss in rule.near_misses]
    known = {rule.at: len(sites.of(rule.at)) for rule_set in shipped() for rule in rule_set.rules}
    there = {kind: count for kind, count in known.items() if count}
    lines.append("the model has " + (", ".join(f"{count} {kind}" for kind, count in there.items()) or "none of them"))
    fitting = [one.name for one in shipped() if one.rules and _fits(one.rules, there.keys())]
    return MatchError(
        f"no rule of {', '.join(rule_set.name for rule_set in rule_sets)} matched anything in this model",
        found="".join(f"\n    {line}" for line in dict.fromkeys(lines)),
        where=rule_sets[0].document.where(("rules",)),
        fix=f"rule sets for what it has: {', '.join(fitting) or 'none'}; or `fxtune inspect MODEL`, and a pattern of "
        "your own under `patterns:`",
    )


def _fits(rules: Sequence[Rule], there: Collection[str]) -> bool:
    """Whether a model with these kinds of sites has one for every rule, or a rule that stands in for it."""
    stands_in = {rule.unless for rule in rules if rule.at in there}
    return all(_needs(rule) <= {*there} or rule.at in stands_in for rule in rules)


def _needs(rule: Rule) -> set[str]:
    return {rule.at, ATTENTION} if joins_rows(rule.tuner) else {rule.at}
