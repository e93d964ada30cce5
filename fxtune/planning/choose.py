"""Which sites a rule means, and whether they are as many as it expects."""

from __future__ import annotations

from dataclasses import dataclass

from fxtune.errors import MatchError
from fxtune.matching import Site, Sites
from fxtune.rules import Rule, Where


@dataclass(frozen=True)
class Choice:
    """The sites of one rule; or why it has none."""

    sites: tuple[Site, ...]
    skipped: str | None = None


def choose(rule: Rule, sites: Sites, where: str) -> Choice:
    """The sites that `rule` chooses.

    Args:
        rule: what to choose.
        sites: the model's sites.
        where: where the rule was written, for errors.

    Raises:
        PatternError: no pattern is called so.
        MatchError: the rule chooses nothing of what there is, or less than it expects, with the near misses; or it
            names blocks that there are not.
    """
    if rule.unless is not None and (others := sites.of(rule.unless, where=where)):
        return Choice((), f"the model has {len(others)} {rule.unless}, and the rule is for models without")
    known = sites.of(rule.at, on=rule.on, where=where)
    if not known and not rule.required and rule.expect is None:
        return Choice((), f"the model has no {rule.target}")
    check_numbers(rule.where, *_counted(sites), where)
    refused = [(site, rule.where.refusal(**site.facts())) for site in known]
    chosen = tuple(site for site, reason in refused if reason is None)
    reasons = [f"{site.path}: {reason}" for site, reason in refused if reason is not None]
    if not chosen and (known or rule.required):
        raise _shortfall(rule, sites, where, 0, "at least one site", reasons)
    _check_expected(rule, sites, chosen, where, reasons)
    return Choice(chosen, None if chosen else f"the model has no {rule.target}")


def check_numbers(condition: Where, blocks: int, stages: int, where: str) -> None:
    """Raises MatchError where a condition names a block or a stage that does not exist."""
    beyond = condition.beyond(blocks=blocks, stages=stages)
    if beyond is not None:
        raise MatchError(
            "`where:` names what the model does not have",
            found=beyond,
            where=where,
            fix="leave it out, or end a range openly: '6..' means to the last one",
        )


def _counted(sites: Sites) -> tuple[int, int]:
    """How many blocks and stages there are."""
    blocks = sites.of("block")
    return (
        1 + max((site.block for site in blocks if site.block is not None), default=-1),
        1 + max((site.stage for site in blocks if site.stage is not None), default=-1),
    )


def _check_expected(rule: Rule, sites: Sites, chosen: tuple[Site, ...], where: str, reasons: list[str]) -> None:
    if isinstance(rule.expect, int) and len(chosen) != rule.expect:
        raise _shortfall(rule, sites, where, len(chosen), f"{rule.expect} sites", reasons)
    if rule.expect == "every block":
        wanted = [block for block in sites.of("block") if rule.where.refusal(**block.facts()) is None]
        have = {site.block for site in chosen}
        missing = [block for block in wanted if block.block not in have]
        if missing or not wanted:
            paths = ", ".join(block.path for block in missing) or "the model has no block that the rule chooses"
            raise _shortfall(rule, sites, where, len(chosen), f"one in every block; none in {paths}", reasons)


def _shortfall(rule: Rule, sites: Sites, where: str, found: int, expected: str, reasons: list[str]) -> MatchError:
    kinds = [rule.at] if rule.at == "block" else [rule.at, "block"]
    misses = [f"{miss.kind}: {miss}" for kind in kinds for miss in sites.near_misses(kind)]
    details = [*reasons[:10], *(f"near miss, {miss}" for miss in misses)]
    listed = "".join(f"\n    {line}" for line in details)
    return MatchError(
        f"the rule at `{rule.target}` matched {found}, and expects {expected}",
        found=f"{len(sites.of(rule.at, on=rule.on))} {rule.target} in the model{listed}",
        where=where,
        fix="change `where:` or `expect:`, or write a pattern for the unit that was missed under `patterns:`",
    )
