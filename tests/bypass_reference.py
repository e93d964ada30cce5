"""Eq. 8 written by hand over a model's own modules: what a bypass must compute, and where its stems are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Weights = Mapping[str, Tensor]

BLOCKS: dict[str, list[str]] = {
    "vit": ["blocks.0", "blocks.1"],
    "bert": ["bert.encoder.layer.0", "bert.encoder.layer.1"],
    "convnext": [f"stages.{stage}.blocks.{block}" for stage, block in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))],
    "resnet": ["layer1.0", "layer2.0", "layer2.1", "layer3.0", "layer4.0"],
    # The middle, and each decoder layer: the transformer where there is one behind the residual convolution.
    "unet": [
        "mid_block",
        *(f"up_blocks.0.resnets.{i}" for i in range(2)),
        *(f"up_blocks.1.attentions.{i}" for i in range(2)),
    ],
}
"""The modules whose outputs are the stems."""

BEFORE = {name: blocks[0] for name, blocks in BLOCKS.items()}
"""The module whose input is x_0."""

MAPS = {"convnext", "resnet", "unet"}
"""Families with channels on axis 1."""


def first(output: Any) -> Tensor:
    tensor = output[0] if isinstance(output, tuple) else output
    assert isinstance(tensor, Tensor)
    return tensor


def like(output: Any, tensor: Tensor) -> Any:
    return (tensor, *output[1:]) if isinstance(output, tuple) else tensor


def output_of(model: nn.Module, family: str, inputs: dict[str, Any], weights: Weights, gated: bool) -> Any:
    """The model's output where the last stem is replaced by what Eq. 8 gives.

    Args:
        model: the original model, in the mode in which it is to run.
        family: its family.
        inputs: of the call.
        weights: of the bypass, by name from `levels` on.
        gated: whether the result moves the last stem by a gate, instead of replacing it.
    """
    stems: list[Tensor] = []
    blocks = [model.get_submodule(path) for path in BLOCKS[family]]

    def start(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stems.append((args[0] if args else kwargs["hidden_states"]).detach())

    def stem(_: nn.Module, args: Any, output: Any) -> None:
        stems.append(first(output).detach())

    def end(_: nn.Module, args: Any, output: Any) -> Any:
        result = bypass(stems, weights, maps=family in MAPS, linear=family == "unet")
        if gated:
            last = stems[-1]
            result = last + weights["gate.weight"] * (result - last)
        return like(output, result)

    with ExitStack() as hooks:
        hooks.enter_context(
            removed(model.get_submodule(BEFORE[family]).register_forward_pre_hook(start, with_kwargs=True))
        )
        for block in blocks:
            hooks.enter_context(removed(block.register_forward_hook(stem)))
        hooks.enter_context(removed(blocks[-1].register_forward_hook(end)))
        return model(**inputs)


def removed(handle: Any) -> ExitStack:
    stack = ExitStack()
    stack.callback(handle.remove)
    return stack


def bypass(stems: list[Tensor], weights: Weights, *, maps: bool, linear: bool) -> Tensor:
    """x_L' of Eq. 8 from x_0 to x_L."""
    below = stems[0]
    for number, stem in enumerate(stems[1:]):
        own = {name.split(".", 2)[2]: w for name, w in weights.items() if name.startswith(f"levels.{number}.")}
        if maps:
            if stem.shape[2] < below.shape[2]:
                below = F.adaptive_avg_pool2d(below, (stem.shape[2], stem.shape[3]))
            elif stem.shape[2] > below.shape[2]:
                below = F.interpolate(below, size=stem.shape[2:], mode="nearest")
            below, stem = below.permute(0, 2, 3, 1), stem.permute(0, 2, 3, 1)
        if below.shape[-1] != stem.shape[-1]:
            if linear:
                below = below @ own["transition.map.weight"].T + own["transition.map.bias"]
            else:
                half = F.gelu(below @ own["transition.map.0.weight"].T + own["transition.map.0.bias"])
                below = half @ own["transition.map.2.weight"].T + own["transition.map.2.bias"]
        lam = 1 / (1 + torch.exp(-own["mix.weight"]))
        h, v = (z + adapter(z, own, side) for z, side in ((stem, "horizontal"), (below, "vertical")))
        below = lam * h + (1 - lam) * v
        if maps:
            below = below.permute(0, 3, 1, 2)
    return below


def adapter(z: Tensor, own: Weights, side: str) -> Tensor:
    if f"{side}.down.weight" not in own:
        return torch.zeros_like(z)
    hidden = F.gelu(z @ own[f"{side}.down.weight"].T + own[f"{side}.down.bias"])
    return hidden @ own[f"{side}.up.weight"].T + own[f"{side}.up.bias"]


def tensors(output: Any) -> Iterator[Tensor]:
    """The floating tensors of what a model returns."""
    leaves = torch.utils._pytree.tree_leaves(output)
    return (leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point())


def error(a: Any, b: Any, of: Callable[[Any], Iterator[Tensor]] = tensors) -> float:
    """The largest difference over the largest value, of the worst tensor."""
    pairs = list(zip(of(a), of(b), strict=True))
    assert pairs
    return max(_relative(x.detach().double(), y.detach().double()) for x, y in pairs)


def _relative(x: Tensor, y: Tensor) -> float:
    return float((x - y).abs().max() / y.abs().max().clamp_min(1e-300))
