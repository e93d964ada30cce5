"""What a sweep has found, as plots: the curves, and accuracy against weights and memory (Res-Tuning, Fig. 4 and 5)."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fxtune.libraries import library
from fxtune.sweeping.table import Row

SMOOTH = 20
"""A curve's loss is the mean over a so many-th of its steps, that one may be told from another."""


def plots(
    out: Path, title: str, split: str, measure: str, rows: Sequence[Row], folders: Mapping[str, Sequence[str]]
) -> list[Path]:
    """Draws `curves.png`, `weights.png` and, where it is known, `memory.png`.

    Args:
        out: the sweep's folder.
        title: over each plot.
        split: on what.
        measure: what is told of each method.
        rows: the methods.
        folders: of each method, those of the trainings that the table tells.
    """
    made = [_curves(out, title, folders), _against(out, "weights", "trained weights", title, split, measure, rows)]
    if all(row.saved_bytes is not None for row in rows):
        made.append(_against(out, "memory", "MiB saved for backward", title, split, measure, rows))
    return made


def _curves(out: Path, title: str, folders: Mapping[str, Sequence[str]]) -> Path:
    figure, axes = _figure(title)
    for name, places in folders.items():
        runs = [_losses(out / place) for place in places]
        steps = min(map(len, runs))
        width = max(1, steps // SMOOTH)
        means = [statistics.fmean(run[i] for run in runs) for i in range(steps)]
        ends = range(width, steps + 1, width)
        axes.plot(list(ends), [statistics.fmean(means[end - width : end]) for end in ends], label=name)
    axes.set(xlabel="step", ylabel="training loss", yscale="log")
    axes.legend()
    return _saved(figure, out / "curves.png")


def _against(out: Path, name: str, label: str, title: str, split: str, measure: str, rows: Sequence[Row]) -> Path:
    figure, axes = _figure(title)
    for row in rows:
        x = row.trained_weights if name == "weights" else (row.saved_bytes or 0) / 2**20
        axes.errorbar([x], [row.mean(split)], yerr=[row.spread(split)], fmt="o", capsize=3)
        axes.annotate(row.method, (x, row.mean(split)), xytext=(5, 5), textcoords="offset points")
    axes.set(xlabel=label, ylabel=f"{split} {measure}", xscale="log")
    return _saved(figure, out / f"{name}.png")


def _figure(title: str) -> tuple[Any, Any]:
    """A figure of its own: pyplot would keep it, and ask for a screen."""
    made = library("matplotlib.figure", what="A plot", extra="train").Figure(figsize=(7, 4.5), layout="constrained")
    axes = made.add_subplot(title=title)
    axes.grid(alpha=0.3)
    return made, axes


def _saved(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=120)
    return path


def _losses(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text("utf-8").splitlines())
    return [line["loss"] for line in lines if "split" not in line]
