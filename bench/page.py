"""The page of what was measured, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEAD = """# Measured

What `make bench` measured. Times are medians of steps taken by turns in one process; what is compared is their ratio
round by round, since the machine is noisy. All numbers are in [`results.json`](results.json); the long tables of what
is learned are in [`evidence`](evidence/README.md)."""


def write(place: Path, part: str, about: str, machine: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes one part's rows into `README.md` and `results.json`; parts of earlier runs stay as they are."""
    kept = place / "results.json"
    parts = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    parts[part] = {"about": about.strip(), "machine": machine, "rows": rows}
    kept.write_text(json.dumps(parts, indent=1) + "\n", "utf-8")
    sections = [_section(name, of_part) for name, of_part in sorted(parts.items())]
    (place / "README.md").write_text("\n\n".join([HEAD, *sections]) + "\n", "utf-8")


def ratios(row: Mapping[str, Any]) -> list[str]:
    """The names of what a row has a bound for."""
    return [name for name in row if f"{name}_at_most" in row]


def _section(name: str, part: Mapping[str, Any]) -> str:
    table = _methods if any("accuracy" in row for row in part["rows"]) else _ratios
    machine = ", ".join(f"{what} {value}" for what, value in part["machine"].items())
    return "\n\n".join([f"## {name.capitalize()}", part["about"], table(part["rows"]), f"({machine})"])


def _ratios(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| what | ratio | measured | at most |", "|---|---|---:|---:|"]
    for row in rows:
        for name in ratios(row):
            bound = row[f"{name}_at_most"]
            lines.append(f"| {row['what']} | {name} | {row[name]:.4g} | {'' if bound is None else f'{bound:.3g}'} |")
    return "\n".join(lines)


def _methods(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| method | accuracy | trained weights | saved, MiB | peak, MiB | a step, of full |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for row in rows:
        lines.append(
            f"| {row['what'].removeprefix('method: ')} | {row['accuracy']:.1%} | {row['trained']:,} | "
            f"{row['saved_mib']:,.1f} | {row['peak_mib']:,.0f} | {row['step_of_full']:.2f} |"
        )
    return "\n".join(lines)
