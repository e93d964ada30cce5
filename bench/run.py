"""Prints how long things take as ratios, writes them to bench/results/, and fails where one is over its bound."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import applying
import attention
import bypass
import caching
import matching
import tasks
import training

RESULTS = Path(__file__).resolve().parent / "results"


MODULES = (applying, attention, training, bypass, tasks, caching, matching)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="paired rounds of each measurement")
    rounds = parser.parse_args().rounds
    console = Console()
    rows: list[dict[str, Any]] = []
    for module in MODULES:
        for row in module.measure(rounds):
            rows.append(row)
            console.print(told(row))

    table = Table("what", "ratio", "measured", "at most", "")
    over = 0
    for row in rows:
        for name in ratios(row):
            bound = row[f"{name}_at_most"]  # None: to compare only
            within = bound is None or row[name] <= bound
            over += not within
            of = "" if bound is None else f"{bound:.3g}"
            table.add_row(row["what"], name, f"{row[name]:.3g}", of, "" if within else "[red]over")
    console.print(table)

    RESULTS.mkdir(exist_ok=True)
    machine = {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads()}
    (RESULTS / "bench.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n", "utf-8")
    return min(over, 1)


def ratios(row: dict[str, Any]) -> list[str]:
    """The names of what a row has a bound for."""
    return [name for name in row if f"{name}_at_most" in row]


def told(row: dict[str, Any]) -> str:
    """A row as it comes: the run takes an hour."""
    return f"{row['what']}: " + ", ".join(f"{name} {row[name]:.3g}" for name in ratios(row))


if __name__ == "__main__":
    sys.exit(main())
