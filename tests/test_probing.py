"""The catalogue's table: what is tried, and what is written down."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fxtune
from effort import examples
from families import FAMILIES, build
from fxtune.resources import rules_dir
from fxtune.testing import Probe, probe, probe_catalogue
from fxtune.tuners import registry

TABLE = (Path(__file__).parent.parent / "rules" / "README.md").read_text()


def read(table: str) -> dict[str, dict[str, str]]:
    """Method -> column -> cell."""
    lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines() if line.startswith("|")]
    head, _, *rows = lines
    return {row[0].strip("`"): dict(zip(head, row, strict=True)) for row in rows}


@pytest.mark.parametrize(
    ("family", "method", "found"),
    [
        ("vit", "lora", Probe("yes", "yes", "yes", "yes")),
        ("vit", "tri_res", Probe("yes", "yes", "no", "one form")),
        ("vit", "adapter", Probe("yes", "yes", "no", "yes")),
        ("resnet", "prefix", Probe("no")),
        ("bert", "ssf", Probe("yes", "yes", "yes", "yes")),
        ("vit", "linear", Probe("yes", "yes", "no", "one form")),
    ],
)
def test_what_is_tried_is_told(family: str, method: str, found: Probe) -> None:
    model = build(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert probe(model, method, ((), FAMILIES[family].inputs(2))) == found
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuner with a weight that never moves, and whose two forms differ."""
    monkeypatch.setattr(registry, "_entries", {**registry._entries})

    @fxtune.tuner("odd")
    class Odd(nn.Module):
        def __init__(self, place: fxtune.Placement) -> None:
            super().__init__()
            self.used, self.unused = (nn.Parameter(torch.zeros(place.width)) for _ in range(2))

        def forward(self, y: torch.Tensor) -> torch.Tensor:
            return self.used * y

        def in_sequence(self, y: torch.Tensor) -> torch.Tensor:
            return y + 2 * self.used * y

    found = probe(build("vit"), {"rules": [{"at": "ffn", "reads": "output", "insert": "odd"}]})
    assert found == Probe("yes", "no", "no", "no")
    assert str(found) == "applies" and str(Probe("no")) == "" and str(Probe("unknown")) == "unknown"
    assert str(Probe("yes", "yes", "partly", "unknown")) == "trains, merges partly, verifies: unknown"


def test_the_table_has_every_method() -> None:
    table = read(TABLE)
    assert set(table) == {path.stem for path in rules_dir().glob("*.yaml")}
    assert not any("unknown" in cell for row in table.values() for cell in row.values())


@pytest.mark.parametrize("card", ["vit.timm", "resnet"])
def test_the_table_is_what_is_found(card: str) -> None:
    """A few of its rows, all of them in the deep run."""
    written = read(TABLE)
    names = sorted(written)[:: max(1, len(written) // examples(4, 100))]
    made = read(probe_catalogue([card], names))
    assert {name: row[card] for name, row in made.items()} == {name: written[name][card] for name in names}
