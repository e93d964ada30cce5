"""Small models, each with one thing in it that is hard to capture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Example:
    """A model with two sets of inputs of different sizes."""

    model: nn.Module
    first: tuple[tuple[Any, ...], dict[str, Any]]
    second: tuple[tuple[Any, ...], dict[str, Any]]


def bert(attention: str, *, layers: int = 2, dropout: float = 0.1) -> Example:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=24,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )

    def inputs(batch: int, length: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        mask = torch.ones(batch, length, dtype=torch.long)
        mask[0, length // 2 :] = 0
        return (), {"input_ids": torch.randint(0, 40, (batch, length)), "attention_mask": mask}

    return Example(BertModel._from_config(config, attn_implementation=attention), inputs(2, 7), inputs(3, 11))


def vit() -> Example:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=5, drop_path_rate=0.1)
    return Example(model, ((torch.randn(2, 3, 32, 32),), {}), ((torch.randn(3, 3, 32, 32),), {}))


class FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.fc(x), 0.3, self.training)
        return F.dropout(self.fc(x), 0.2, training=self.training)


class DropoutInAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        p = 0.4 if self.training else 0.0
        return F.scaled_dot_product_attention(self.q(x)[:, None], self.k(x)[:, None], x[:, None], dropout_p=p)


class FunctionalBatchNorm(nn.BatchNorm1d):
    """Like timm's BatchNormAct2d: a norm of its own class that calls batch norm itself and has a child."""

    def __init__(self) -> None:
        super().__init__(8)
        nn.init.uniform_(self.weight)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x.transpose(1, 2),
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            0.1,
            self.eps,
        )
        return self.act(x)


class FunctionalDropPath(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        if self.training:
            keep = y.new_empty((y.shape[0], 1, 1)).bernoulli_(0.7)
            y = y * keep.div_(0.7)
        return x + y


class TrainingNoise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            noise = torch.rand(x.shape, dtype=x.dtype, device=x.device)
            x = self.fc(x) + noise
        return self.fc(x)


class EvaluationScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        if not self.training:
            y = (y * 2).view(y.shape[0], -1).view(y.shape)
        return y.relu() + x


class TrainingBranch(nn.Module):
    """The modes run different children."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(x)
        x = self.a(x) if self.training else self.b(x)
        return self.c(x)


class AuxiliaryHead(nn.Module):
    """A sum over a head that only training knows."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.aux, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        extra = self.norm(self.aux(y).flatten(0, 1)).sum() if self.training else 0.0
        return y.relu() + extra


class LiftedConstants(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.scale = torch.linspace(0.1, 1.0, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x) * torch.tensor([1.0, 0.1, 3.0, 0.3, 5.0, 0.7, 7.0, 0.9])
        return (y.float() * self.scale).to(x.dtype)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(8, 8), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        self.act(y)
        y = y + x
        y += x
        y[:, :2].mul_(2.0)
        return y


class AutocastRegion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            y = self.out(self.fc(x) @ x.transpose(1, 2) @ x)
            with torch.autocast(x.device.type, enabled=False):
                y = self.fc(y.float())
        return self.fc(y)


class NoGradRegion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = self.fc(x).mean()
            with torch.enable_grad():
                bias = self.fc(x) * scale
        return self.fc(x) * scale + bias


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class _Projection(nn.Module):
    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight).relu()


class TiedFunctional(nn.Module):
    """A weight used by a module that does not have it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(8, 8), _Projection()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.fc(x), self.fc.weight)


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        return self.norm(x) if skip else self.norm(x + self.fc(x))


class SharedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = _Layer()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(self.layer(x)))


class DifferingCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = _Layer()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x), skip=True)


class _Holder(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inner = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * 2


class TwoPaths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = _Holder(_Layer())
        self.b = _Holder(self.a.inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


class _Caller(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor, then: Callable[[Tensor], Tensor]) -> Tensor:
        return then(self.fc(x)) + self.fc(x)


class CalledByCallback(nn.Module):
    """A child that calls another module of its parent."""

    def __init__(self) -> None:
        super().__init__()
        self.caller, self.layer = _Caller(), _Layer()

    def forward(self, x: Tensor) -> Tensor:
        return self.caller(x, self.layer) + self.caller(x, torch.relu)


class ChildCalledSelf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.add_module("self", nn.Linear(8, 8))
        self.add_module("layer", _Layer())
        self.add_module("torch", nn.Linear(8, 8))
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self._modules["self"](x)  # type: ignore[misc]
        x = torch.relu(self._modules["torch"](x))  # type: ignore[misc]
        return self.fc(self._modules["layer"](x)) * 2  # type: ignore[misc]


class UnusedChildren(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 4)
        self.layers = nn.ModuleList([_Layer(), nn.Identity(), _Layer()])
        self.nothing = None
        self.register_module("none", None)
        self.register_buffer("table", torch.arange(8.0), persistent=False)
        self.register_buffer("kept", torch.ones(8))
        self.free = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x * self.table


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 16)

    def forward(self, x: Tensor, *, twice: bool) -> dict[str, Any]:
        a, b = self.fc(x).chunk(2, dim=-1)
        return {"a": a * 2 if twice else a, "rest": [b, None, x.shape[0]]}


class Structured(nn.Module):
    """Returns and passes on nested structures."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = _Pair()

    def forward(self, x: Tensor, **options: Any) -> dict[str, Any]:
        made = self.pair(x, twice=True)
        return {"out": made["a"] + made["rest"][0], "sizes": (made["rest"][2], None), "x": x}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 8, num_layers=2, dropout=0.3, batch_first=True)
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.fc(out)


class TorchAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.2, batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.attention(x, x, x, need_weights=False)
        return self.norm(x + out)


class _Reshape(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor, length: int) -> Tensor:
        return self.fc(x.reshape(-1, length, 8)).reshape(-1, length * 2, 4)


class ComputedSizes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = _Reshape()

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        doubled = torch.cat([x, x], 1)
        y = self.inner(doubled.flatten(0, 1), doubled.shape[1])
        return y.reshape(batch, length * 2, width) * (1.0 / length)


class _Pool(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1) / x.shape[1]


class SizeLeaf(nn.Module):
    """A live leaf with arithmetic on sizes in it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.pool = nn.Linear(8, 8), _Pool()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.fc(x))


class Nothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.id = nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.id(x), x


class InputReturned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = _Layer()

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x, self.layer(x), x]


class Guarded(nn.Module):
    """Takes another way for widths that are a multiple of four."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[1] % 4 == 0 else x * 3
