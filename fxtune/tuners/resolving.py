"""Rule sets whose tuners exist and whose settings they take, with a caller's keyword overrides put in."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from fxtune import source
from fxtune.errors import RuleError, SourceError
from fxtune.rules import Bypass, Rule, RuleSet, Where
from fxtune.source import Loc
from fxtune.tuners.building import checked
from fxtune.tuners.registry import Entry, find

Insert = Mapping[str, Mapping[str, Any]]
RuleOrBypass = TypeVar("RuleOrBypass", Rule, Bypass)


def resolve(rule_sets: Sequence[RuleSet], overrides: Mapping[str, Any] | None = None) -> list[RuleSet]:
    """The rule sets with `overrides` put in, their tuners and settings checked.

    An override is a setting, which goes to every rule whose tuner knows it (``dim=20``, ``scale="channel"``), or a
    condition of `Where`, which replaces that condition in every rule (``blocks="first 6"``, ``drop=[3, 6]``).

    Raises:
        RuleError: a tuner or a setting does not exist or has a bad value (with its place in the file), or no rule
            knows an override.
    """
    for rule_set in rule_sets:
        for insert, loc in _inserts(rule_set):
            _check(rule_set, insert, loc)
    plain = source.from_data(overrides or {}).data
    conditions = {name: value for name, value in plain.items() if name in Where.model_fields}
    settings = {name: value for name, value in plain.items() if name not in conditions}
    entries = {name: find(name) for rule_set in rule_sets for insert, _ in _inserts(rule_set) for name in insert}
    _check_overrides(settings, conditions, entries.values())
    changed = [_overridden(rule_set, settings, conditions, entries) for rule_set in rule_sets]
    for rule_set in changed:
        for i, rule in enumerate(rule_set.rules):
            _check_choices(rule, entries[rule.tuner], rule_set, ("rules", i, "choices"))
    return changed


def _inserts(rule_set: RuleSet) -> Iterator[tuple[Insert, Loc]]:
    """Every tuner with its settings, and where it stands."""
    for i, rule in enumerate(rule_set.rules):
        yield rule.insert, ("rules", i, "insert")
    for side, insert in rule_set.bypass.tuners.items() if rule_set.bypass else ():
        yield insert, ("bypass", side)


def _check(rule_set: RuleSet, insert: Insert, loc: Loc) -> None:
    for name, settings in insert.items():
        entry = find(name, where=rule_set.document.where((*loc, name), key=True))
        if settings:
            checked(entry, rule_set.document, (*loc, name))


def _check_choices(rule: Rule, entry: Entry, rule_set: RuleSet, loc: Loc) -> None:
    """The sizes that a rule leaves open: settings of its tuner that are sizes, none larger than the tuner itself."""
    for name, sizes in rule.choices.items():
        if name not in entry.narrows:
            near = source.nearest(name, entry.narrows, 1)
            raise RuleError(
                f"The tuner {entry.name!r} has no size called {name!r} to choose",
                found=f"its sizes: {', '.join(entry.narrows) or 'none'}",
                where=rule_set.document.where((*loc, name), key=True),
                fix=f"did you mean {near[0]!r}?" if near else "leave `choices:` out",
            )
        largest = rule.settings.get(name, entry.settings[name][1])
        if max(sizes) > largest:
            raise RuleError(
                f"A choice of `{name}` is larger than the tuner itself",
                found=f"{max(sizes)}, and {entry.name} with {name}={largest}",
                where=rule_set.document.where((*loc, name)),
                fix="let the rule insert the tuner at the largest of its choices: a smaller one is a part of it",
            )
        for size in filter(None, sizes):
            try:
                checked(entry, source.from_data({**rule.settings, name: size}, entry.name))
            except RuleError as error:
                where = rule_set.document.where((*loc, name, sizes.index(size)))
                raise RuleError(error.asked, found=error.found, where=where) from None


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
    rule_set: RuleSet, settings: Mapping[str, Any], conditions: Mapping[str, Any], entries: Mapping[str, Entry]
) -> RuleSet:
    def changed(insert: Insert) -> Insert:
        return {
            name: {**given, **{key: value for key, value in settings.items() if key in entries[name].settings}}
            for name, given in insert.items()
        }

    def one(rule: RuleOrBypass, inserts: Mapping[str, Insert]) -> RuleOrBypass:
        where = rule.where.model_copy(update=conditions)
        return rule.model_copy(update={"where": where, **{key: changed(insert) for key, insert in inserts.items()}})

    bypass = rule_set.bypass
    return replace(
        rule_set,
        rules=tuple(one(rule, {"insert": rule.insert}) for rule in rule_set.rules),
        bypass=bypass and one(bypass, bypass.tuners),
    )
