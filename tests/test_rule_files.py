"""Every shipped rule file on a vision transformer and on a text encoder: it applies, has its weights, and trains."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import fx

import fxtune
from families import FAMILIES, build
from forms import tuners
from fxtune import rules
from fxtune.matching import Sites
from fxtune.patterns import load_patterns
from fxtune.planning import plan
from fxtune.rewriting import rewrite
from fxtune.tuners import resolve
from fxtune.view import view

WIDTH, BLOCKS, SIZE = 32, 2, 10  # of both models, and m = P of the rules

SHIPPED = sorted(rule_set.name for rule_set in rules.shipped() if rule_set.rules or rule_set.bypass)

IMAGES_ONLY = [("convpass", "bert")]


SMALLER: dict[str, Any] = {"side_tuning": {"layers": [[16, 3, 2, 1]], "positions": 4}}
"""Settings for small images."""


@functools.cache
def captured(family: str) -> tuple[fx.GraphModule, Sites]:
    graph = fxtune.capture(build(family), FAMILIES[family].inputs(4))
    return graph, Sites(view(graph), load_patterns([]))


def tuned(family: str, name: str) -> fx.GraphModule:
    graph, sites = captured(family)
    root = copy.deepcopy(graph)
    chosen = resolve(rules.load(name), SMALLER.get(name))
    return rewrite(root, plan(root, sites, chosen, head=FAMILIES[family].head, seed=0)).requires_grad_(False)


def weights(tuner: str, settings: dict[str, Any]) -> int:
    """Of one tuner, as the definitions have it."""
    match tuner:
        case "res_adapter":
            scale = WIDTH if settings.get("scale") == "channel" else 0
            return 2 * WIDTH * SIZE + SIZE + WIDTH + scale
        case "res_prefix":
            return 2 * SIZE * WIDTH
        case _:
            return SIZE * WIDTH


@pytest.mark.parametrize(
    ("name", "family"),
    [(name, family) for name in SHIPPED for family in ("vit", "bert") if (name, family) not in IMAGES_ONLY],
)
def test_a_rule_file_applies_and_trains(name: str, family: str) -> None:
    model, inputs = tuned(family, name), FAMILIES[family].inputs(4)
    trained = tuners(model)
    if name.startswith(("single", "dual", "tri")) or name in ("prefix", "prompt", "vpt_deep"):
        (rule_set,) = rules.load(name)
        expected = BLOCKS * sum(weights(rule.tuner, dict(rule.settings)) for rule in rule_set.rules)
        assert sum(weight.numel() for weight in trained.values()) == expected
    start = {key: weight.detach().clone() for key, weight in trained.items()}
    for weight in trained.values():
        weight.requires_grad_()
    optimizer = torch.optim.AdamW(trained.values(), lr=0.001)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = FAMILIES[family].loss(model(**inputs), 4)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert [key for key, weight in trained.items() if torch.equal(weight, start[key])] == []
