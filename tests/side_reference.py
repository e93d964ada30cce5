"""Ladder side-tuning and side-tuning by hand, over a model's own modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bypass_reference as blocks

Weights = Mapping[str, Tensor]
TEMPERATURE = 0.1


def under(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): w for name, w in weights.items() if name.startswith(f"{prefix}.")}


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    made = x @ w[f"{name}.weight"].T
    return made + w[f"{name}.bias"] if f"{name}.bias" in w else made


def norm(x: Tensor, w: Weights, name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def attention(x: Tensor, w: Weights, heads: int, seen: Tensor | None) -> Tensor:
    """`seen`: B x N, which tokens are no padding."""
    width = x.shape[-1]
    q, k, v = linear(x, w, "qkv").split(width, -1)
    out = []
    for part in torch.arange(width).chunk(heads):
        logits = q[..., part] @ k[..., part].mT / len(part) ** 0.5
        if seen is not None:
            logits = logits.masked_fill(~seen[:, None], -torch.inf)
        out.append(logits.softmax(-1) @ v[..., part])
    return linear(torch.cat(out, -1), w, "proj")


def block(z: Tensor, w: Weights, heads: int, seen: Tensor | None) -> Tensor:
    """Tokens B x N x D, or positions B x H x W x D, through a side block."""
    mixed = norm(z, w, "norm1")
    if "qkv.weight" in w:
        z = z + attention(mixed, w, heads, seen)
    else:
        map = F.conv2d(mixed.permute(0, 3, 1, 2), w["conv.weight"], w["conv.bias"], padding=1, groups=z.shape[-1])
        z = z + linear(map.permute(0, 2, 3, 1), w, "proj")
    return z + linear(F.gelu(linear(norm(z, w, "norm2"), w, "ffn.0")), w, "ffn.2")


def ladder(stems: list[Tensor], w: Weights, heads: int, seen: Tensor | None, *, maps: bool) -> Tensor:
    """What stands for the last Block's output, from x_0 to x_L (Sung et al., 2022, as the catalogue has it)."""
    if maps:
        stems = [stem.permute(0, 2, 3, 1) for stem in stems]
    h = linear(stems[0], w, "start")
    for number, stem in enumerate(stems[1:]):
        own = under(w, f"levels.{number}")
        if maps and stem.shape[1] != h.shape[1]:
            h = F.adaptive_avg_pool2d(h.permute(0, 3, 1, 2), stem.shape[1:3]).permute(0, 2, 3, 1)
        if "transition.map.0.weight" in own:
            h = linear(F.gelu(linear(h, own, "transition.map.0")), own, "transition.map.2")
        g = 1 / (1 + torch.exp(own["mix.weight"] / TEMPERATURE))
        h = block(g * h + (1 - g) * linear(stem, own, "reduce"), under(own, "mixed"), heads, seen)
    end = linear(norm(h, w, "end.norm"), w, "end.map")
    return end.permute(0, 3, 1, 2) if maps else end


def with_ladder(model: nn.Module, family: str, inputs: dict[str, Any], w: Weights, heads: int) -> Any:
    """The model's output where the ladder's result stands for the last Block's."""
    mask = inputs.get("attention_mask")
    stems: list[Tensor] = []

    def start(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        stems.append((args[0] if args else kwargs["hidden_states"]).detach())

    def stem(_: nn.Module, args: Any, output: Any) -> None:
        stems.append(blocks.first(output).detach())

    def end(_: nn.Module, args: Any, output: Any) -> Any:
        seen = None if mask is None else mask.bool()
        return blocks.like(output, ladder(stems, w, heads, seen, maps=family in blocks.MAPS))

    modules = [model.get_submodule(path) for path in blocks.BLOCKS[family]]
    handles = [model.get_submodule(blocks.BEFORE[family]).register_forward_pre_hook(start, with_kwargs=True)]
    handles += [module.register_forward_hook(stem) for module in modules]
    handles.append(modules[-1].register_forward_hook(end))
    try:
        return model(**inputs)
    finally:
        for handle in handles:
            handle.remove()


def side(model: nn.Module, family: str, inputs: dict[str, Any], w: Weights, heads: int) -> Tensor:
    """Features by the side network: of an image by convolutions of kernel 3, stride 2 with a pool behind the first, of
    a text by one block over its word embeddings."""
    if family == "bert":
        seen = inputs["attention_mask"].bool()
        z = linear(model.get_submodule("bert.embeddings.word_embeddings")(inputs["input_ids"]).detach(), w, "down")
        z = block(z, under(w, "block"), heads, seen)
        return linear((z * seen[..., None]).sum(1) / seen.sum(1, keepdim=True), w, "up")
    map = F.relu(F.conv2d(inputs["x"], w["features.0.weight"], w["features.0.bias"], stride=2, padding=1))
    map = F.max_pool2d(map, 3, 2)
    map = F.relu(F.conv2d(map, w["features.3.weight"], w["features.3.bias"], stride=2, padding=1))
    return linear(F.adaptive_avg_pool2d(map, 2).flatten(1), w, "up")


def with_side(model: nn.Module, family: str, head: str, inputs: dict[str, Any], w: Weights, heads: int) -> Any:
    """The model's output where the head reads ``λ base + (1 - λ) side``."""
    share = 1 / (1 + torch.exp(-w["levels.0.mix.weight"]))
    made = side(model, family, inputs, under(w, "levels.0.vertical"), heads)

    def mixed(_: nn.Module, args: tuple[Any, ...]) -> Tensor:
        return share * args[0].detach() + (1 - share) * made

    handle = model.get_submodule(head).register_forward_pre_hook(mixed)
    try:
        return model(**inputs)
    finally:
        handle.remove()
