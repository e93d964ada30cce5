"""The original form of what changes weights: operations by module and by operator, with a bias and without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxtune


class Net(nn.Module):
    """A linear map as a module, one by the operator, each with a bias or without, and one by a product."""

    def __init__(self, bias: bool, *, product: bool = True) -> None:
        super().__init__()
        self.product = product
        self.layer = nn.Linear(8, 6, bias=bias)
        self.weight = nn.Parameter(torch.randn(8, 6))
        self.bias = nn.Parameter(torch.randn(8)) if bias else None
        self.matrix = nn.Parameter(torch.randn(8, 8))
        self.norm = nn.LayerNorm(8, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.linear(torch.relu(self.layer(x)), self.weight, self.bias)
        return self.norm(torch.relu(hidden) @ self.matrix if self.product else hidden)


def applied(model: nn.Module, inserts: list[str], **more: Any) -> nn.Module:
    rules = {"fxtune": 1, "name": "t", "rules": [{"at": "linear", "insert": insert} for insert in inserts]}
    inputs = (torch.randn(2, 5, 8, dtype=torch.float64),)
    return fxtune.apply(model, rules, example_inputs=inputs, dtype=torch.float64, **more).eval()


@pytest.mark.parametrize("inserts", [["lora"], ["lora", "lora"]], ids="+".join)
@pytest.mark.parametrize("bias", [True, False])
def test_both_forms_agree(bias: bool, inserts: list[str]) -> None:
    check(Net(bias).double(), inserts)


@pytest.mark.parametrize(
    "inserts", [["bitfit"], ["lora", "bitfit"], ["bitfit", "lora"], ["bitfit", "bitfit"]], ids="+".join
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_bias_comes_also_where_there_was_none(bias: bool, inserts: list[str]) -> None:
    check(Net(bias, product=False).double(), inserts)


def check(model: nn.Module, inserts: list[str]) -> None:
    unbound, original = applied(model, inserts), applied(model, inserts, form="original")
    with torch.no_grad():
        for name, weight in unbound.named_parameters():
            if "tuners" in name:
                weight.normal_(std=0.3)
    original.load_state_dict(unbound.state_dict())
    x = torch.randn(3, 4, 8, dtype=torch.float64)
    torch.testing.assert_close(original(x), unbound(x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(unbound(x), model(x))
    for mine, theirs in zip(*(gradients(tuned, x) for tuned in (original, unbound)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def gradients(tuned: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    loss = (tuned(x) * torch.linspace(-1, 1, 96, dtype=torch.float64).view(3, 4, 8)).sum()
    return torch.autograd.grad(loss, [weight for name, weight in tuned.named_parameters() if "tuners" in name])


def test_a_product_takes_no_bias() -> None:
    with pytest.raises(fxtune.PlanError, match="takes none"):
        applied(Net(False).double(), ["bitfit"], form="original")(torch.randn(1, 4, 8, dtype=torch.float64))
