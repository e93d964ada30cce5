"""A checkpoint's rules for a model that computes the same under other names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from glob import escape
from typing import Any

from fxtune.matching import Site, Sites
from fxtune.rules import TRAIN_WORDS, Bypass, Rule, RuleSet, Where
from fxtune.saving.moving import Elsewhere
from fxtune.saving.standing import nodes_of
from fxtune.structure import STATE


def reworded(rule_sets: Sequence[RuleSet], sites: Sites, names: Sequence[str], to: Elsewhere) -> tuple[RuleSet, ...]:
    """The rules, with what they call by names called by its names here.

    That is module paths in `where:`, and weights under `train:`; a number that a rule expects becomes the number of
    its sites here, which is another where projections are fused or split.

    Args:
        rule_sets: the checkpoint's.
        sites: of the model.
        names: of the model's parameters.
        to: the model.
    """
    changed, number = [], 0
    for rule_set in rule_sets:
        rules = []
        for rule in rule_set.rules:
            rules.append(_rule(rule, number, sites, to))
            number += 1
        train = tuple(entry for old in rule_set.train for entry in _trained(old, names, to))
        bypass = rule_set.bypass and _bypass(rule_set.bypass, sites, to)
        changed.append(replace(rule_set, rules=tuple(rules), train=tuple(dict.fromkeys(train)), bypass=bypass))
    return tuple(changed)


def resized(rule_sets: Sequence[RuleSet], settings: Mapping[int, Mapping[str, Any]]) -> tuple[RuleSet, ...]:
    """The rules with these settings, by the number of the rule over all rule sets."""
    changed, number = [], 0
    for rule_set in rule_sets:
        rules = []
        for rule in rule_set.rules:
            insert = {rule.tuner: dict(settings.get(number, rule.settings))}
            rules.append(rule.model_copy(update={"insert": insert}))
            number += 1
        changed.append(replace(rule_set, rules=tuple(rules)))
    return tuple(changed)


def _rule(rule: Rule, number: int, sites: Sites, to: Elsewhere) -> Rule:
    if rule.where.path is None and not isinstance(rule.expect, int):
        return rule
    chosen = _where_they_stood(sites.of(rule.at, on=rule.on), number, to)
    if not chosen:
        return rule
    expect = len(chosen) if isinstance(rule.expect, int) else rule.expect
    return rule.model_copy(update={"where": _by_path(rule.where, chosen), "expect": expect})


def _bypass(bypass: Bypass, sites: Sites, to: Elsewhere) -> Bypass:
    if bypass.along is None or bypass.stems.path is None:
        return bypass
    chosen = _where_they_stood(sites.calls(bypass.along), None, to)
    return bypass.model_copy(update={"stems": _by_path(bypass.stems, chosen)}) if chosen else bypass


def _where_they_stood(sites: Sequence[Site], number: int | None, to: Elsewhere) -> list[Site]:
    """Those of the sites at which tuners of a rule stood."""
    nodes = {
        node for path, standing in to.tuners.items() if standing.rule == number for node in to.standing(path).nodes
    }
    return [site for site in sites if (at := nodes_of(site, to.here)) and nodes.issuperset(at)]


def _by_path(where: Where, sites: Sequence[Site]) -> Where:
    """The conditions, with the paths of these sites in the place of the globs that chose them there."""
    if where.path is None:
        return where
    return where.model_copy(update={"path": list(dict.fromkeys(escape(site.path) for site in sites))})


def _trained(entry: str, names: Sequence[str], to: Elsewhere) -> list[str]:
    """What an entry of `train` fits, as it is called here."""
    if entry in TRAIN_WORDS:
        return [entry]
    here = {
        to.here.structure.nodes[to.nodes[i]].name
        for i, node in enumerate(to.there.nodes)
        if node.op == STATE and fnmatchcase(node.name, entry)
    }
    known = {node.name for node in to.here.structure.nodes if node.op == STATE}
    if not here or here == {name for name in known if fnmatchcase(name, entry)}:
        return [entry]
    return [escape(name) for name in names if name in here]
