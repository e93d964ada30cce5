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
        method: its rules, and the options of its data that the sweep goes through.
        settings: the point of the grid that was best on `val`; empty without a grid.
        scores: on each split that is told, one a seed.
        trained_weights: how many.
        saved_bytes: saved for backward in a step; None where that can't be told.
        diverged: trainings whose loss was not finite, over all of the grid.
    """

    method: str
    settings: Mapping[str, Any]
    scores: Mapping[str, tuple[float, ...]]
    trained_weights: int
    saved_bytes: int | None
    diverged: int = 0

    def mean(self, split: str) -> float:
        """Of the scores on a split."""
        return statistics.fmean(self.scores[split])

    def spread(self, split: str) -> float:
        """The standard deviation over the seeds; 0 with one seed."""
        return statistics.stdev(self.scores[split]) if len(self.scores[split]) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        over_seeds = {split: {"mean": self.mean(split), "spread": self.spread(split)} for split in self.scores}
        return {**asdict(self), "over_seeds": over_seeds}


def chosen(
    results: Sequence[tuple[Cell, Mapping[str, Any]]], splits: Sequence[str], measure: str, *, higher: bool
) -> dict[str, Any] | None:
    """The best point of the grid among the results of one row, and its scores; None where all have diverged.

    A point at which some seeds have diverged is only taken where they have at every other one, too; its scores are
    those of the rest.
    """
    points: dict[str, list[tuple[Cell, Mapping[str, Any]]]] = {}
    for cell, result in results:
        points.setdefault(repr(sorted(cell.settings.items())), []).append((cell, result))
    ended = [[(cell, result) for cell, result in found if measure in result] for found in points.values()]
    most = max(map(len, ended), default=0)
    whole = [found for found in ended if len(found) == most]
    if not most:
        return None
    if len(points) > 1:
        on_val = [statistics.fmean(result[measure]["val"] for _, result in found) for found in whole]
        best = whole[on_val.index(max(on_val) if higher else min(on_val))]
    else:
        best = whole[0]
    return {
        "settings": dict(best[0][0].settings),
        "scores": {split: tuple(float(result[measure][split]) for _, result in best) for split in splits},
        "trained_weights": int(best[0][1]["trained_weights"]),
        "folders": [cell.folder for cell, _ in best],
    }


def drawn(title: str, splits: Sequence[str], measure: str, rows: Sequence[Row]) -> Table:
    """The table, as it is printed."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in _head(splits, measure):
        table.add_column(name, justify="left" if name in ("method", "chosen") else "right")
    for row in rows:
        table.add_row(*_cells(row, splits, measure))
    return table


def markdown(title: str, splits: Sequence[str], measure: str, rows: Sequence[Row]) -> str:
    """The same for a page."""
    head = _head(splits, measure)
    lines = [head, ["---" if name in ("method", "chosen") else "---:" for name in head]]
    lines += [_cells(row, splits, measure) for row in rows]
    return "\n".join([f"# {title}", "", *(f"| {' | '.join(line)} |" for line in lines)]) + "\n"


def _head(splits: Sequence[str], measure: str) -> list[str]:
    return ["method", *(f"{split} {measure}" for split in splits), "trained weights", "saved for backward", "chosen"]


def _cells(row: Row, splits: Sequence[str], measure: str) -> list[str]:
    settings = ", ".join(f"{name}={value}" for name, value in row.settings.items())
    diverged = f"{row.diverged} diverged" if row.diverged else ""
    saved = "unknown" if row.saved_bytes is None else f"{row.saved_bytes / 2**20:,.1f} MiB"
    scores = [_score(row, split, measure) for split in splits]
    return [row.method, *scores, f"{row.trained_weights:,}", saved, ", ".join(filter(None, [settings, diverged]))]


def _score(row: Row, split: str, measure: str) -> str:
    several, mean, spread = len(row.scores[split]) > 1, row.mean(split), row.spread(split)
    if measure == "accuracy":
        return f"{100 * mean:.2f}" + (f" ± {100 * spread:.2f}" if several else "") + " %"
    return f"{mean:.4g}" + (f" ± {spread:.2g}" if several else "")
