"""Prints how long things take as ratios, keeps them in README.md beside this, and fails where one is over its bound."""

from __future__ import annotations

import argparse
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
import catalogue
import matching
import page
import tasks
import training

HERE = Path(__file__).resolve().parent

MODULES = (applying, attention, training, bypass, tasks, caching, matching, catalogue)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    known = {module.__name__: module for module in MODULES}
    parser.add_argument("--rounds", type=int, default=5, help="paired rounds of each measurement")
    parser.add_argument("--only", nargs="*", choices=list(known), help="these parts; the page keeps the others")
    asked = parser.parse_args()
    console = Console()
    machine = {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads()}
    rows: list[dict[str, Any]] = []
    for name in asked.only or known:
        of_part = []
        for row in known[name].measure(asked.rounds):
            of_part.append(row)
            console.print(told(row))
        page.write(HERE, name, known[name].__doc__, machine, of_part)
        rows += of_part

    table = Table("what", "ratio", "measured", "at most", "")
    over = 0
    for row in rows:
        for name in page.ratios(row):
            bound = row[f"{name}_at_most"]  # None: to compare only
            within = bound is None or row[name] <= bound
            over += not within
            of = "" if bound is None else f"{bound:.3g}"
            table.add_row(row["what"], name, f"{row[name]:.4g}", of, "" if within else "[red]over")
    console.print(table)
    return min(over, 1)


def told(row: dict[str, Any]) -> str:
    """A row as it comes: all of them take two hours."""
    return f"{row['what']}: " + ", ".join(f"{name} {row[name]:.4g}" for name in page.ratios(row))


if __name__ == "__main__":
    sys.exit(main())
