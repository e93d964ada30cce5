"""What capture refuses, what it says, and that a refused model is as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

import capture_models as models
from fxtune.errors import CaptureError, InputError, UnsupportedModelError
from fxtune.tracing import capture

X = (torch.randn(2, 6, 8),)


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        self.last = y
        if y.sum() > 0:  # the line to be named
            return y
        return -y


class ModeDecidesStructure(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return (x * 2, x) if self.training else x * 2


def _state(model: nn.Module) -> Any:
    return [
        (
            name,
            module.training,
            dict(module.__dict__),
            {k: dict(v) for k, v in module.__dict__.items() if isinstance(v, dict)},
        )
        for name, module in model.named_modules()
    ]


def _hooked(model: nn.Module) -> nn.Module:
    model.register_forward_hook(lambda *_: None)
    model.fc.eval()  # type: ignore[union-attr]
    model.fc.weight.grad = torch.ones(8, 8)  # type: ignore[union-attr]
    model.fc.bias.requires_grad_(False)  # type: ignore[union-attr]
    return model


@pytest.mark.parametrize(("make", "works"), [(DataDependent, False), (models.FunctionalDropout, True)])
def test_model_is_as_it_was(make: Callable[[], nn.Module], works: bool) -> None:
    model = _hooked(make())
    before, weights, noise = _state(model), copy.deepcopy(model.state_dict()), torch.get_rng_state()
    if works:
        capture(model, X)
    else:
        with pytest.raises(CaptureError):
            capture(model, X)
    after = _state(model)
    for (name, training, attributes, dicts), (_, training_after, attributes_after, dicts_after) in zip(
        before, after, strict=True
    ):
        assert training == training_after, name
        assert attributes.keys() == attributes_after.keys(), name
        assert all(attributes_after[key] is attributes[key] for key in attributes), name
        assert dicts == dicts_after, name
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())
    assert torch.equal(model.fc.weight.grad, torch.ones(8, 8))  # type: ignore[union-attr]
    assert torch.equal(torch.get_rng_state(), noise)
    assert "training" not in vars(nn.Module)
    assert not nn_module._has_any_global_hook()


def test_names_the_line_of_the_models_code() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(DataDependent(), X)
    assert caught.value.where is not None
    assert __file__ in caught.value.where
    assert "if y.sum() > 0" in caught.value.where


def test_structure_that_follows_the_mode() -> None:
    with pytest.raises(CaptureError, match="evaluation mode"):
        capture(ModeDecidesStructure(), X)


@pytest.mark.parametrize("inputs", [(), (X[0], X[0], X[0]), {"nonsense": X[0]}, 3, ({}, {})])
def test_example_inputs_that_do_not_fit(inputs: Any) -> None:
    with pytest.raises(InputError) as caught:
        capture(models.FunctionalDropout(), inputs)
    assert caught.value.fix


def _compiled_in_place() -> nn.Module:
    model = models.Tied()
    model.b.compile()
    return model


def _adapted() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(models.FunctionalDropout(), LoraConfig(target_modules=["fc"], r=2))  # type: ignore[arg-type]


def _quantised() -> nn.Module:
    model = models.FunctionalDropout()
    model.fc.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    return model


UNSUPPORTED: dict[str, Callable[[], Any]] = {
    "compiled": lambda: torch.compile(models.Tied()),
    "compiled in place": _compiled_in_place,
    "data parallel": lambda: nn.DataParallel(models.Tied()),
    "adapted": _adapted,
    "adapted inside": lambda: _adapted().base_model.model,
    "quantised": _quantised,
    "scripted": lambda: torch.jit.trace(models.Tied(), X),
    "no module": lambda: torch.relu,
}


@pytest.mark.parametrize("state", UNSUPPORTED)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_unsupported_models(state: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        capture(UNSUPPORTED[state](), X)
    assert caught.value.found
