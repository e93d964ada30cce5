"""tri_res on a timm ViT as one would write it by hand: the same tuners, without a graph."""

from __future__ import annotations

from collections.abc import Mapping

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Adapter(nn.Module):
    """``s ⊙ (gelu(x W_down + b_down) W_up + b_up)``."""

    def __init__(self, width: int, dim: int, *, scaled: bool) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, dim), nn.Linear(dim, width)
        self.scale = nn.Parameter(torch.ones(width)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        z = self.up(F.gelu(self.down(x)))
        return z if self.scale is None else z * self.scale


class Block(nn.Module):
    """A Block with a tuner beside its attention, its feed-forward network, and itself."""

    def __init__(self, block: nn.Module, width: int, dim: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = block.norm1, block.attn, block.norm2, block.mlp
        self.beside_attn, self.beside_mlp = (Adapter(width, dim, scaled=True) for _ in range(2))
        self.beside = Adapter(width, dim, scaled=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        a = x + self.attn(y) + self.beside_attn(y)
        y = self.norm2(a)
        return a + self.mlp(y) + self.beside_mlp(y) + self.beside(x)


def tri_res(state: Mapping[str, Tensor], classes: int, dim: int = 10) -> nn.Module:
    """ViT-B/16 with these weights, of a model tuned by `tri_res`; only tuners and head train."""
    model = timm.create_model("vit_base_patch16_224", num_classes=classes)
    for parameter in model.parameters():
        parameter.requires_grad = False
    for parameter in model.head.parameters():
        parameter.requires_grad = True
    model.blocks = nn.Sequential(*(Block(block, model.embed_dim, dim) for block in model.blocks))
    model.load_state_dict({_name(name): value for name, value in state.items()})
    return model.train()


def _name(name: str) -> str:
    """fxtune's name of a weight as it is called here."""
    for theirs, ours in (
        ("attn.tuners.mha_res_adapter", "beside_attn"),
        ("mlp.tuners.ffn_res_adapter", "beside_mlp"),
        ("tuners.block_res_adapter", "beside"),
        ("scale.weight", "scale"),
    ):
        name = name.replace(theirs, ours)
    return name
