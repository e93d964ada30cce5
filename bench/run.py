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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="paired rounds of each measurement")
    rounds = parser.parse_args().rounds
    console = Console()
    rows: list[dict[str, Any]] = []
    for row in applying.measure(rounds):
        rows.append(row)
        console.print(f"{row['what']}: export {row['export_s']:.2f} s, apply {row['apply_s']:.2f} s")
    rows.extend(matching.measure(rounds))
    rows.extend(attention.measure(rounds))
    rows.extend(training.measure(rounds))
    rows.extend(bypass.measure(rounds))
    rows.extend(tasks.measure(rounds))
    rows.extend(caching.measure(rounds))

    table = Table("what", "ratio", "measured", "at most", "")
    over = 0
    for row in rows:
        for name in [name for name in row if f"{name}_at_most" in row]:
            bound = row[f"{name}_at_most"]  # None: to compare only
            within = bound is None or row[name] <= bound
            over += not within
            told = "" if bound is None else f"{bound:.3g}"
            table.add_row(row["what"], name, f"{row[name]:.3g}", told, "" if within else "[red]over")
    console.print(table)

    RESULTS.mkdir(exist_ok=True)
    machine = {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads()}
    (RESULTS / "bench.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n", "utf-8")
    return min(over, 1)


if __name__ == "__main__":
    sys.exit(main())
