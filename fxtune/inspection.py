"""What a model has and what rules would do to it, without doing it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from fxtune.matching import NearMiss, Site
from fxtune.planning import BypassPlan, Patch
from fxtune.rewriting import build_bypass
from fxtune.tuned import Report, RuleOutcome
from fxtune.tuners import build

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True)
class Inspection:
    """The sites of a model by kind, what nearly was one, and the report of the rules if some were given.

    Attributes:
        model: the model's class.
        sites: sites by kind.
        near_misses: by kind, the nearest first.
        report: what the rules would do; None without rules.
        patch: the changes that they would make to the graphs, a line each when printed; None without rules.
    """

    model: str
    sites: dict[str, list[Site]]
    near_misses: dict[str, list[NearMiss]]
    report: Report | None = None
    patch: Patch | None = None

    def rows(self) -> list[tuple[str, ...]]:
        """A row for each run of sites that are alike: kind, variant, number, blocks, width, heads, layout, where."""
        return [_row(run) for sites in self.sites.values() for run in _runs(sites)]

    def __str__(self) -> str:
        lines = [self.model, *("  ".join(row) for row in self.rows())]
        lines += [f"near miss, {kind}: {miss}" for kind, misses in self.near_misses.items() for miss in misses]
        return "\n".join([*lines, *([str(self.report)] if self.report else [])])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.markup import escape
        from rich.table import Table

        counts = ", ".join(f"{len(sites)} {kind}" for kind, sites in self.sites.items())
        table = Table(title=escape(f"{self.model}: {counts}"))
        for column in ("kind", "variant", "sites", "blocks", "width", "heads", "layout"):
            table.add_column(column)
        table.add_column("where", overflow="fold")
        for row in self.rows():
            table.add_row(*map(escape, row))
        yield table
        misses = [(kind, miss) for kind, found in self.near_misses.items() for miss in found]
        if misses:
            near = Table(title="Near misses")
            near.add_column("kind")
            near.add_column("operations matched", justify="right")
            near.add_column("where it failed", overflow="fold")
            near.add_column("why", overflow="fold")
            for kind, miss in misses:
                near.add_row(kind, str(miss.matched), escape(miss.place), escape(f"{miss.reason}; {miss.line}"))
            yield near
        if self.report:
            yield self.report


def outcomes(patch: Patch, weights: dict[str, int]) -> tuple[RuleOutcome, ...]:
    """What became of each rule of a patch; `weights` gives the number of weights of each tuner by its path."""
    rules = tuple(
        RuleOutcome(
            rule=rule.text,
            label=rule.insertions[0].label if rule.insertions else "",
            sites=tuple(insertion.site.path for insertion in rule.insertions),
            weights=sum(weights[insertion.path] for insertion in rule.insertions),
            skipped=rule.skipped,
            near_misses=tuple(map(str, rule.near_misses)),
            notes=rule.notes,
        )
        for rule in patch.rules
    )
    return (*rules, _of_bypass(patch.bypass, weights[patch.bypass.path])) if patch.bypass else rules


def _of_bypass(plan: BypassPlan, weights: int) -> RuleOutcome:
    return RuleOutcome(
        rule=plan.text,
        label="bypass",
        sites=tuple(level.site.path for level in plan.levels),
        weights=weights,
        notes=(f"its result goes in behind {plan.output.tap} ({plan.splice})",),
    )


def counted(patch: Patch) -> dict[str, int]:
    """The number of weights of each tuner of a patch, by its path; nothing is allocated."""
    made: dict[str, nn.Module] = {
        i.path: build(i.tuner, i.settings, i.place, device=torch.device("meta")) for i in patch.insertions
    }
    if patch.bypass:
        made[patch.bypass.path] = build_bypass(patch.bypass, device="meta")
    return {path: sum(p.numel() for p in module.parameters()) for path, module in made.items()}


def _runs(sites: list[Site]) -> Iterator[list[Site]]:
    run: list[Site] = []
    for site in sites:
        if run and _alike(run[-1]) != _alike(site):
            yield run
            run = []
        run.append(site)
    if run:
        yield run


def _alike(site: Site) -> tuple[object, ...]:
    return (site.variant, site.width, site.heads, site.stage, site.output.channel_axis, len(site.output.shape))


def _row(run: list[Site]) -> tuple[str, ...]:
    first, last = run[0], run[-1]
    blocks = [str(site.block) for site in (first, last) if site.block is not None]
    paths = [first.path or "<root>", last.path or "<root>"]
    return (
        first.kind,
        first.variant,
        str(len(run)),
        "..".join(dict.fromkeys(blocks)) or "-",
        str(first.width),
        str(first.heads),
        "tokens" if first.output.channel_axis == len(first.output.shape) - 1 else "map",
        " .. ".join(dict.fromkeys(paths)),
    )
