"""`memory`: what is told on fake tensors is what real ones take."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import families
import fxtune
from effort import examples
from fxtune import cards
from fxtune.accounting import Usage
from fxtune.accounting.ledger import Ledger
from fxtune.accounting.report import units
from fxtune.testing import small_models
from memory_reference import Training, held_bytes, peak_bytes, saved_bytes

MIB = 2**20


def trained(model: nn.Module, method: str, example_inputs: Any) -> nn.Module:
    """A real model that trains by a method: the library's own for full fine-tuning and linear probing."""
    if method not in ("full", "linear"):
        return fxtune.apply(model, method, example_inputs=example_inputs).train()
    head = cards.head(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(method == "full" or name.startswith(f"{head}."))
    model.train()
    for module in model.modules():
        if method == "linear" and isinstance(module, _BatchNorm):
            module.eval()
    return model


def family(name: str, method: str, batch: int) -> Training:
    inputs = families.FAMILIES[name].inputs(batch)
    return Training(trained(families.build(name), method, inputs), (), inputs)


def told(name: str, *args: Any, batch: int = 3, **kwargs: Any) -> fxtune.MemoryReport:
    model = families.build(name)
    return fxtune.memory(model, *args, batch=batch, example_inputs=families.FAMILIES[name].inputs(2), **kwargs)


# Exact: what is saved for the backward


@settings(max_examples=examples(6, 80))
@given(
    small_models(["vit.timm", "convnext.timm", "resnet", "bert.transformers", "vit.transformers"]),
    st.sampled_from(["dual_res", "bitfit", "single_prefix_block"]),
    st.integers(1, 5),
)
def test_saved_bytes_are_exact(small: Any, rules: str, batch: int) -> None:
    report = fxtune.memory(small.build()[0], rules, batch=batch)
    for usage in report.usages:
        model, _ = small.build()
        args, kwargs = cards.example_inputs(model, batch=max(batch, 2))
        real = trained(model, usage.method, (args, kwargs))
        args, kwargs = cards.example_inputs(model, batch=batch)
        assert usage.saved_for_backward == saved_bytes(Training(real, args, kwargs)), usage.method


@pytest.mark.parametrize("name", families.FAMILIES)
def test_saved_bytes_are_exact_and_the_peak_near_on_every_family(name: str) -> None:
    report = told(name, "tri_res")
    assert {"full", "linear", "tri_res"} <= {usage.method for usage in report.usages}
    for usage in report.usages:
        assert usage.saved_for_backward == saved_bytes(family(name, usage.method, 3)), usage.method
        assert usage.peak == pytest.approx(peak_bytes(family(name, usage.method, 3)), rel=0.1), usage.method
