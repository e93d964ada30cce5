"""What `tuned.report()` tells: each rule, where it matched, what nearly matched and why not, and the weights added."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class RuleOutcome:
    """What became of one rule.

    Attributes:
        rule: the rule in a line, ``mha <- res_adapter(dim=10)``.
        label: under which its tuners stand in the state_dict.
        sites: the module path of each site that it took.
        weights: how many weights it added.
        skipped: why it was not carried out, if it wasn't.
        near_misses: what nearly matched, a line each, with the node where it failed.
        notes: what else the reader should know, such as a tuner that had to read the output.
    """

    rule: str
    label: str = ""
    sites: tuple[str, ...] = ()
    weights: int = 0
    skipped: str | None = None
    near_misses: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def remarks(self) -> list[str]:
        skipped = [f"skipped: {self.skipped}"] if self.skipped else []
        return [*skipped, *self.notes, *(f"nearly: {miss}" for miss in self.near_misses)]


@dataclass(frozen=True)
class Report:
    """The outcome of every rule on one model, and the totals. `print` it, or hand it to a rich console."""

    model: str
    outcomes: tuple[RuleOutcome, ...]
    notes: tuple[str, ...] = ()
    trainable: int = 0
    total: int = 0

    def counted(self, trainable: int, total: int) -> Report:
        return replace(self, trainable=trainable, total=total)

    @property
    def share(self) -> float:
        """Of all weights, how many per cent train."""
        return 100 * self.trainable / self.total if self.total else 0.0

    @property
    def totals(self) -> str:
        return f"{self.trainable:,} of {self.total:,} weights train ({self.share:.4f}%)"

    def __str__(self) -> str:
        lines = [self.model]
        for outcome in self.outcomes:
            lines.append(f"  {outcome.rule}: {_count(len(outcome.sites), 'site')}, {outcome.weights:,} weights added")
            if outcome.sites:
                lines.append(f"    at {short_paths(outcome.sites)}")
            lines.extend(f"    {remark}" for remark in outcome.remarks)
        lines.extend(f"  {note}" for note in self.notes)
        return "\n".join([*lines, f"  {self.totals}"])

    def __rich__(self) -> Table:
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=escape(self.model), caption=escape("\n".join([*self.notes, self.totals])))
        table.add_column("rule")
        table.add_column("sites", justify="right")
        table.add_column("where", overflow="fold")
        table.add_column("weights", justify="right")
        table.add_column("remarks", overflow="fold")
        for outcome in self.outcomes:
            where, remarks = short_paths(outcome.sites), "\n".join(outcome.remarks)
            table.add_row(
                escape(outcome.rule), str(len(outcome.sites)), escape(where), f"{outcome.weights:,}", escape(remarks)
            )
        return table


def short_paths(paths: tuple[str, ...], most: int = 6) -> str:
    """The paths in a line: all of them, or the first ones and the last."""
    shown = [path or "(root)" for path in paths]
    if len(shown) > most:
        shown = [*shown[: most - 1], "…", shown[-1]]
    return ", ".join(shown)


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
