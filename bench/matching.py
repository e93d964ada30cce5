"""How the time of matching grows with the depth of a model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import fx, nn

import fxtune
from fxtune.matching import Sites
from fxtune.patterns import load_patterns
from fxtune.view import view
from timing import paired

SHALLOW, DEEP, AT_MOST = 120, 1200, 12.0
UNITS = {"mha": 1, "ffn": 1, "block": 1}
OPERATIONS = {"linear": 4, "biased": 6}
"""Kinds, and how many sites of each a block has."""


def measure(rounds: int) -> Iterator[dict[str, Any]]:
    """Seconds to find all sites of a narrow ViT with 120 and with 1,200 blocks, and the ratio with its bound: units,
    then single operations. A minute and more each, so that fewer rounds than elsewhere tell as much."""
    for what, kinds in (("units", UNITS), ("operations", OPERATIONS)):
        shallow_s, deep_s, ratio = paired(matching(SHALLOW, kinds), matching(DEEP, kinds), max(1, rounds // 2))
        yield {
            "what": f"matching {what}, {DEEP:,} blocks over {SHALLOW}",
            "shallow_s": shallow_s,
            "deep_s": deep_s,
            "ratio": ratio,
            "ratio_at_most": AT_MOST,
        }


def matching(blocks: int, kinds: dict[str, int]) -> Callable[[], None]:
    """The matching of a captured model with so many blocks, ready to be timed: view and all sites of these kinds."""
    captured = stacked(blocks // SHALLOW)
    library = load_patterns()

    def work() -> None:
        sites = Sites(view(captured), library)
        for kind, each in kinds.items():
            found = len(sites.of(kind))
            assert found == each * blocks, f"{found} {kind} sites in {blocks} blocks"

    return work


def stacked(times: int) -> fx.GraphModule:
    """A model of so many times 120 blocks: copies of one capture in a row, for capturing 1,200 blocks takes minutes."""
    with torch.device("meta"):
        model = VisionTransformer(img_size=32, patch_size=16, embed_dim=16, depth=SHALLOW, num_heads=2, num_classes=5)
    trunk = fxtune.capture(model).get_submodule("blocks")
    assert isinstance(trunk, fx.GraphModule)
    (entry,) = (node for node in trunk.graph.nodes if node.op == "placeholder")
    graph, root = fx.Graph(), nn.Module()
    value = graph.placeholder("x")
    value.meta["val"] = entry.meta["val"]
    for i in range(times):
        root.add_module(f"trunk{i}", copy.deepcopy(trunk))
        value = graph.call_module(f"trunk{i}", (value,))
    graph.output(value)
    return fx.GraphModule(root, graph)
