"""What a sweep has found, as a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from fxtune.sweeping.cells import Cell


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        method: its rules.
        settings: the point of the grid that was best on `val`; empty without a grid.
        scores: on the split that is told, one a seed.
        trained_weights: how many.
        saved_bytes: saved for backward in a step; None where that can't be told.
        diverged: trainings whose loss was not finite, over all of the grid.
    """

    method: str
    settings: Mapping[str, Any]
    scores: tuple[float, ...]
    trained_weights: int
    saved_bytes: int | None
    diverged: int = 0

    @property
    def mean(self) -> float:
        """Of the scores."""
        return statistics.fmean(self.scores)

    @property
    def spread(self) -> float:
        """The standard deviation over the seeds; 0 with one seed."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "mean": self.mean, "spread": self.spread}


def chosen(results: Mapping[Cell, Mapping[str, Any]] | Sequence[tuple[Cell, Mapping[str, Any]]], split: str,
           measure: str, *, higher: bool) -> dict[str, Any] | None:  # fmt: skip
    """The best point of the grid among the results of one method, and its scores; None where all have diverged."""
    points: dict[str, list[tuple[Cell, Mapping[str, Any]]]] = {}
    pairs = results.items() if isinstance(results, Mapping) else results
    for cell, result in pairs:
        points.setdefault(repr(sorted(cell.settings.items())), []).append((cell, result))
    whole = [found for found in points.values() if all(measure in result for _, result in found)]
    if not whole:
        return None
    if len(points) > 1:
        on_val = [statistics.fmean(result[measure]["val"] for _, result in found) for found in whole]
        best = whole[on_val.index(max(on_val) if higher else min(on_val))]
    else:
        best = whole[0]
    return {
        "settings": dict(best[0][0].settings),
        "scores": tuple(float(result[measure][split]) for _, result in best),
        "trained_weights": int(best[0][1]["trained_weights"]),
        "folders": [cell.folder for cell, _ in best],
    }


def drawn(title: str, split: str, measure: str, rows: Sequence[Row], seeds: int) -> Table:
    """The table, as it is printed."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("method", f"{split} {measure}", "trained weights", "saved for backward", "chosen"):
        table.add_column(name, justify="left" if name in ("method", "chosen") else "right")
    for row in rows:
        table.add_row(*_cells(row, measure, seeds))
    return table


def markdown(title: str, split: str, measure: str, rows: Sequence[Row], seeds: int) -> str:
    """The same for a page."""
    head = f"| method | {split} {measure} | trained weights | saved for backward | chosen |\n|---|---:|---:|---:|---|"
    return (
        "\n".join([f"# {title}", "", head, *(f"| {' | '.join(_cells(row, measure, seeds))} |" for row in rows)]) + "\n"
    )


def _cells(row: Row, measure: str, seeds: int) -> tuple[str, ...]:
    if measure == "accuracy":
        score = f"{100 * row.mean:.2f}" + (f" ± {100 * row.spread:.2f}" if seeds > 1 else "") + " %"
    else:
        score = f"{row.mean:.4g}" + (f" ± {row.spread:.2g}" if seeds > 1 else "")
    settings = ", ".join(f"{name}={value}" for name, value in row.settings.items())
    diverged = f"{row.diverged} diverged" if row.diverged else ""
    saved = "unknown" if row.saved_bytes is None else f"{row.saved_bytes / 2**20:,.1f} MiB"
    return row.method, score, f"{row.trained_weights:,}", saved, ", ".join(filter(None, [settings, diverged]))
