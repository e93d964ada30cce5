"""Rule sets whose tuners exist and whose settings they take, with a caller's keyword overrides put in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fxtune import source
from fxtune.errors import RuleError, SourceError
from fxtune.rules import Rule, RuleSet, Where
from fxtune.tuners.building import checked
from fxtune.tuners.registry import Entry, find


def resolve(rule_sets: Sequence[RuleSet], overrides: Mapping[str, Any] | None = None) -> list[RuleSet]:
    """The rule sets with `overrides` put in, their tuners and settings checked.

    An override is a setting, which goes to every rule whose tuner knows it (``dim=20``, ``scale="channel"``), or a
    condition of `Where`, which replaces that condition in every rule (``blocks="first 6"``, ``drop=[3, 6]``).

    Raises:
        RuleError: a tuner or a setting does not exist or has a bad value (with its place in the file), or no rule
            knows an override.
    """
    for rule_set in rule_sets:
        for i, rule in enumerate(rule_set.rules):
            _check(rule_set, i, rule)
    plain = source.from_data(overrides or {}).data
    conditions = {name: value for name, value in plain.items() if name in Where.model_fields}
    settings = {name: value for name, value in plain.items() if name not in conditions}
    entries = {rule.tuner: find(rule.tuner) for rule_set in rule_sets for rule in rule_set.rules}
    _check_overrides(settings, conditions, entries.values())
    return [
        replace(rule_set, rules=tuple(_overridden(rule, settings, conditions, entries) for rule in rule_set.rules))
        for rule_set in rule_sets
    ]


def _check(rule_set: RuleSet, index: int, rule: Rule) -> None:
    loc = ("rules", index, "insert", rule.tuner)
    entry = find(rule.tuner, where=rule_set.document.where(loc, key=True))
    if rule.settings:
        checked(entry, rule_set.document, loc)


def _check_overrides(settings: Mapping[str, Any], conditions: Mapping[str, Any], entries: Collection[Entry]) -> None:
    if not entries and (settings or conditions):
        raise RuleError(f"The keyword {[*settings, *conditions][0]!r} has no rule to change", found="no rule at all")
    known = {setting for entry in entries for setting in entry.settings}
    for name in (name for name in settings if name not in known):
        near = source.nearest(name, known | set(Where.model_fields), 1)
        raise RuleError(
            f"No rule here knows the keyword {name!r}",
            found=f"settings: {', '.join(sorted(known)) or 'none'}; conditions: {', '.join(Where.model_fields)}",
            fix=f"did you mean {near[0]!r}?" if near else None,
        )
    for entry in entries:
        own = {name: value for name, value in settings.items() if name in entry.settings}
        checked(entry, source.from_data(own, "keyword"))
    try:
        source.from_data(conditions, "keyword").validate(Where)
    except SourceError as error:
        raise RuleError("These keywords choose no sites", found=error.found, where=error.where) from None


def _overridden(
    rule: Rule, settings: Mapping[str, Any], conditions: Mapping[str, Any], entries: Mapping[str, Entry]
) -> Rule:
    own = {name: value for name, value in settings.items() if name in entries[rule.tuner].settings}
    where = rule.where.model_copy(update=conditions)
    return rule.model_copy(update={"insert": {rule.tuner: {**rule.settings, **own}}, "where": where})
