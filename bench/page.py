"""The page of what was measured, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEAD = """# Measured

What `make bench` measured in one run. Times are medians of steps taken by turns; what is compared is their ratio round
by round, since the machine is noisy. All numbers are in [`results.json`](results.json); the long tables of what is
learned are in [`evidence`](evidence/README.md).

{machine}"""

METHODS = """## Methods

Memory and time of a training step on ViT-S/16 at 224 pixels, 8 images in float32: bytes saved for backward, the most
in memory over two steps (weights, gradients and AdamW's state included), and a step beside one of full fine-tuning.
Accuracy on digits of five classes, by a small ViT that had learned the five others: 10 epochs, the better of two
learning rates."""


def write(place: Path, machine: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes `README.md` and `results.json`."""
    told = ", ".join(f"{name} {value}" for name, value in machine.items())
    parts = [HEAD.format(machine=f"{told}."), _ratios([row for row in rows if "accuracy" not in row])]
    parts.append(_methods([row for row in rows if "accuracy" in row]))
    (place / "README.md").write_text("\n\n".join(parts) + "\n", "utf-8")
    (place / "results.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n", "utf-8")


def ratios(row: Mapping[str, Any]) -> list[str]:
    """The names of what a row has a bound for."""
    return [name for name in row if f"{name}_at_most" in row]


def _ratios(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["## Ratios", "", "| what | ratio | measured | at most |", "|---|---|---:|---:|"]
    for row in rows:
        for name in ratios(row):
            bound = row[f"{name}_at_most"]
            lines.append(f"| {row['what']} | {name} | {row[name]:.3g} | {'' if bound is None else f'{bound:.3g}'} |")
    return "\n".join(lines)


def _methods(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [METHODS, "", "| method | accuracy | trained weights | saved, MiB | peak, MiB | a step, of full |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for row in rows:
        lines.append(
            f"| {row['what'].removeprefix('method: ')} | {row['accuracy']:.1%} | {row['trained']:,} | "
            f"{row['saved_mib']:,.1f} | {row['peak_mib']:,.0f} | {row['step_of_full']:.2f} |"
        )
    return "\n".join(lines)
