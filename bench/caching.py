"""An epoch on cached features, against one that runs the backbone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fxtune
from stepping import adamw
from timing import paired

SAMPLES, BATCH = 64, 32
MOST = {"token": 1 / 100, "avg": 1 / 8}
KIB_A_SAMPLE = 50


def measure(rounds: int) -> Iterator[dict[str, Any]]:
    """One row a head: seconds of an epoch of either, their ratio and what a sample takes on disk, with bounds."""
    torch.manual_seed(0)
    data = DataLoader(TensorDataset(torch.randn(SAMPLES, 3, 224, 224), torch.arange(SAMPLES)), batch_size=BATCH)
    for pool, head in (("token", "class token"), ("avg", "mean-pooled")):
        model = timm.create_model("vit_base_patch16_224", global_pool=pool)
        tuned = fxtune.apply(model, "res_bypass", seed=0, num_classes=100).train()
        with tempfile.TemporaryDirectory() as folder:
            cache = tuned.cache_features(data, folder)
            cached = cache.loader(BATCH, shuffle=True)
            direct_s, cached_s, ratio = paired(
                _epoch(tuned, data, tuned), _epoch(tuned, cached, tuned.from_features), rounds
            )
            row = {
                "what": f"feature cache, ViT-B/16, {head}",
                "direct_s": direct_s,
                "cached_s": cached_s,
                "ratio": ratio,
                "ratio_at_most": MOST[pool],
                "kib_a_sample": cache.bytes / len(cache) / 1024,
            }
            if pool == "token":
                row["kib_a_sample_at_most"] = KIB_A_SAMPLE
            yield row


def _epoch(tuned: nn.Module, data: Iterable[Any], forward: Callable[[Any], torch.Tensor]) -> Callable[[], None]:
    """Steps of AdamW on all samples."""
    optimizer = adamw(tuned)

    def run() -> None:
        for inputs, labels in data:
            optimizer.zero_grad()
            nn.functional.cross_entropy(forward(inputs), labels).backward()
            optimizer.step()

    return run
