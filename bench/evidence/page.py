"""The page of what was found: a table a subject, the paper's Table 1, and the curves."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from evidence.comparing import Training
from evidence.comparing import write as write_json
from evidence.forms import Pair

HEAD = """# Evidence

What `make evidence` found, here on two cores; it goes on where it was interrupted. Every method of a table has the
same backbone, data, batches, steps and schedule (AdamW, a tenth of the steps to warm up, a cosine behind them), and
the better of two learning rates on `val` with one seed. Told is the accuracy on `test`: the mean of three seeds (of
head, tuners, order and dropout) and their standard deviation. All numbers are in [`results.json`](results.json)."""

FORMS = """## Two forms of one method

The paper's Table 1. A method's own form and the unbound one start from equal weights and see equal batches. In float64
both compute the same to 1e-12, step by step; in float32 each rounds in its own way, and training makes what is small
large."""


def write(place: Path, rows: Mapping[tuple[str, str], list[Training]], pairs: Sequence[Pair], folder: Path) -> None:
    """Writes `results.json`, in which what was found on other subjects stays, the curves, and `README.md` of it all."""
    found = [_result(one, folder) for trainings in rows.values() for one in trainings]
    forms = [_result(pair, folder) for pair in pairs]
    subjects = {one["subject"] for one in found}
    path = place / "results.json"
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {"tables": [], "forms": []}
    kept = {name: [one for one in some if one["subject"] not in subjects] for name, some in known.items()}
    results = {
        "tables": [*kept["tables"], *({k: v for k, v in one.items() if k != "losses"} for one in found)],
        "forms": [*kept["forms"], *map(_short, forms)],
    }
    write_json(path, results)
    for subject in dict.fromkeys(one["subject"] for one in forms):
        _curves([one for one in forms if one["subject"] == subject], place / f"forms_{subject}.png")
    (place / "README.md").write_text(_page(results), "utf-8")


def _page(results: Mapping[str, list[dict[str, Any]]]) -> str:
    parts = [HEAD]
    for subject in dict.fromkeys(one["subject"] for one in results["tables"]):
        parts.append(_table([one for one in results["tables"] if one["subject"] == subject]))
    parts.append(_forms(results["forms"]))
    for subject in dict.fromkeys(one["subject"] for one in results["forms"]):
        parts.append(f"![loss curves, {subject}](forms_{subject}.png)")
    return "\n\n".join(parts) + "\n"


def _result(one: Training | Pair, folder: Path) -> dict[str, Any]:
    return json.loads(one.file(folder).read_text("utf-8"))


def _table(found: Sequence[dict[str, Any]]) -> str:
    lines = [f"## {found[0]['subject']}", "", f"{found[0]['about']}.", ""]
    lines.append("| method | accuracy | each seed | trained weights | of the backbone | learning rate |")
    lines.append("|---|---:|---|---:|---:|---:|")
    for method in dict.fromkeys(one["method"] for one in found):
        row = [one for one in found if one["method"] == method]
        tests = [100 * one["test"] for one in row]
        told, each = f"{statistics.fmean(tests):.2f} ± {statistics.stdev(tests):.2f} %", [f"{x:.2f}" for x in tests]
        first = row[0]
        share = first["trained"] / first["backbone"]
        lines.append(
            f"| {method} | {told} | {', '.join(each)} | {first['trained']:,} | {share:.2%} | {first['lr']:g} |"
        )
    return "\n".join(lines)


def _forms(forms: Sequence[dict[str, Any]]) -> str:
    lines = [
        FORMS,
        "",
        "| on | method | weights in | original | unbound | apart, points | largest difference of a loss |",
    ]
    lines.append("|---|---|---|---:|---:|---:|---:|")
    for found in forms:
        one, other = found["original"], found["unbound"]
        lines.append(
            f"| {found['subject']} | {found['method']} | {found['dtype']} | {one['test']:.2%} | {other['test']:.2%} | "
            f"{100 * abs(one['test'] - other['test']):.2f} | {found['apart']:.1e} |"
        )
    return "\n".join(lines)


def _short(found: dict[str, Any]) -> dict[str, Any]:
    """Without the losses of each step, but how far they are apart."""
    losses = [found[form]["losses"] for form in ("original", "unbound")]
    short = {
        form: {"test": found[form]["test"], "last loss": found[form]["losses"][-1]} for form in ("original", "unbound")
    }
    return {**found, **short, "apart": max(abs(a - b) for a, b in zip(*losses, strict=True))}


def _curves(forms: Sequence[dict[str, Any]], file: Path) -> None:
    """Losses of either form, a panel for each method and dtype."""
    dtypes, methods = ([*dict.fromkeys(found[key] for found in forms)] for key in ("dtype", "method"))
    figure = Figure(figsize=(4 * len(methods), 2.6 * len(dtypes)), layout="constrained")
    panels = figure.subplots(len(dtypes), len(methods), sharex=True, sharey=True, squeeze=False)
    for found in forms:
        panel = panels[dtypes.index(found["dtype"])][methods.index(found["method"])]
        panel.plot(found["original"]["losses"], color="0.7", linewidth=3, label="original")
        panel.plot(found["unbound"]["losses"], color="tab:blue", linewidth=0.8, label="unbound")
        panel.set(title=f"{found['method']}, {found['dtype']}", yscale="log")
        panel.legend()
    figure.supxlabel("step")
    figure.supylabel("training loss")
    figure.savefig(file, dpi=80)
