"""`methods`: what each shipped rule set would train on a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from fxtune.api.inspecting import inspect
from fxtune.errors import MatchError, PlanError, RuleError
from fxtune.names import resolve as resolve_model
from fxtune.progress import progress
from fxtune.rules import shipped
from fxtune.tuned import Report, one_capture

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class MethodCount:
    """One rule set on one model.

    Attributes:
        name: of the rule set.
        report: what it would train, by rule and in all; None where it does not apply.
        refused: why it does not apply.
    """

    name: str
    report: Report | None = None
    refused: str | None = None

    @property
    def trainable(self) -> int | None:
        """The number of weights that train, head included; None where it does not apply."""
        return None if self.report is None else self.report.trainable


@dataclass(frozen=True)
class MethodCounts:
    """Every shipped rule set on one model. `print` it, or hand it to a rich console."""

    model: str
    counts: tuple[MethodCount, ...]

    def __getitem__(self, name: str) -> MethodCount:
        return {count.name: count for count in self.counts}[name]

    def __str__(self) -> str:
        return "\n".join([self.model, *("  ".join(row) for row in self._rows())])

    def _rows(self) -> list[tuple[str, str, str]]:
        return [
            (count.name, "-", count.refused or "")
            if count.report is None
            else (count.name, f"{count.report.trainable:,}", f"{count.report.share:.3f} %")
            for count in self.counts
        ]

    def __rich__(self) -> Table:
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=escape(self.model))
        table.add_column("method", style="bold cyan", no_wrap=True)
        table.add_column("weights that train", justify="right")
        table.add_column("share of all, or why not", overflow="fold")
        for row in self._rows():
            table.add_row(*map(escape, row))
        return table


def methods(
    model: nn.Module | str,
    *,
    example_inputs: Any = None,
    head: str | None = None,
    num_classes: int | None = None,
) -> MethodCounts:
    """How many weights each shipped rule set trains on a model, with its published defaults.

    Takes what `apply` takes; a model given by name is built on the meta device, without its weights.
    """
    model = resolve_model(model, meta=True) if isinstance(model, str) else model
    counts = []
    with one_capture():
        for rule_set in progress(shipped(), "Counting"):
            try:
                found = inspect(model, rule_set.name, example_inputs=example_inputs, head=head, num_classes=num_classes)
            except (MatchError, PlanError, RuleError) as error:
                counts.append(MethodCount(rule_set.name, refused=error.asked))
            else:
                counts.append(MethodCount(rule_set.name, found.report))
    return MethodCounts(type(model).__name__, tuple(counts))
