"""How the time of matching grows with the depth of a model."""

from __future__ import annotations

import copy
from collections.abc import Callable
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
KINDS = {"mha": 1, "ffn": 1, "block": 1, "linear": 4, "biased": 6}  # sites of each in a block


def measure(rounds: int) -> dict[str, Any]:
    """Seconds to find all sites of a narrow ViT with 120 and with 1,200 blocks, and the ratio with its bound."""
    shallow_s, deep_s, ratio = paired(matching(SHALLOW), matching(DEEP), rounds)
    return {
        "what": f"matching, {DEEP:,} blocks over {SHALLOW}",
        "shallow_s": shallow_s,
        "deep_s": deep_s,
        "ratio": ratio,
        "ratio_at_most": AT_MOST,
    }


def matching(blocks: int) -> Callable[[], None]:
    """The matching of a captured model with so many blocks, ready to be timed: view and all sites."""
    captured = stacked(blocks // SHALLOW)
    library = load_patterns()

    def work() -> None:
        sites = Sites(view(captured), library)
        for kind, each in KINDS.items():
            found = len(sites.of(kind))
            assert found == each * blocks, f"{found} {kind} sites in {blocks} blocks"
        assert len(sites.of("mha", on=["q_proj", "out_proj"])) == 2 * blocks

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
