"""One plain training loop for every model: fxtune's, PEFT's, and one that nobody has touched."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from evidence.samples import Samples


@dataclass(frozen=True)
class Plan:
    """How long, and in what steps. AdamW, a tenth of the steps to warm up, a cosine down to zero behind them."""

    epochs: int
    batch: int
    weight_decay: float = 0.01
    clip: float = 1.0


def learn(model: nn.Module, samples: Samples, plan: Plan, lr: float, seed: int) -> Iterator[float]:
    """Trains what requires gradients; the loss of each step as it comes."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=plan.weight_decay)
    steps = plan.epochs * -(-len(samples) // plan.batch)
    warmup, step, shuffle = max(1, steps // 10), 0, random.Random(seed)
    torch.manual_seed(seed)
    model.train()
    for _ in range(plan.epochs):
        for inputs, labels in samples.batches(plan.batch, shuffle):
            rising, falling = (step + 1) / warmup, (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
            for group in optimizer.param_groups:
                group["lr"] = lr * (rising if step < warmup else falling)
            loss = F.cross_entropy(model(**inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, plan.clip)
            optimizer.step()
            step += 1
            yield float(loss.detach())
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, samples: Samples) -> float:
    """The share of samples that are told rightly."""
    model.eval()
    right = sum(int((model(**inputs).argmax(-1) == labels).sum()) for inputs, labels in samples.batches(64))
    return right / len(samples)
