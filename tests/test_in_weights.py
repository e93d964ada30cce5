"""The original form of what changes weights: operations by module and by operator, with a bias and without."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.beit import Beit
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import fxtune
from form_models import awake
from forms import FORMS, awaken, error, tuners


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


class Computed(nn.Module):
    """Operations whose bias is computed: put together of others, doubled, cast; by every operator that takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = nn.Linear(8, 6, bias=False)
        self.first, self.last = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(2))
        self.register_buffer("none", torch.zeros(2))
        self.turned, self.kernel = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8, 8, 1))
        self.doubled = nn.Parameter(torch.randn(8))
        self.factors = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        together = torch.cat((self.first, self.none, self.last))
        hidden = torch.relu(F.linear(x, self.fused.weight, bias=together))
        hidden = torch.addmm(self.doubled * 2, hidden.flatten(0, 1), self.turned).unflatten(0, x.shape[:2])
        hidden = F.conv1d(torch.relu(hidden).mT, self.kernel, (self.doubled + 1).to(x.dtype)).mT
        return F.layer_norm(torch.relu(hidden), (8,), self.factors, self.doubled.sin())


def applied(model: nn.Module, inserts: list[str], **more: Any) -> nn.Module:
    settings = {"lora": {"lora": {"rank": 3}}, "bitfit": "bitfit"}
    rules = {"fxtune": 1, "name": "t", "rules": [{"at": "linear", "insert": settings[insert]} for insert in inserts]}
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


@pytest.mark.parametrize("inserts", [["lora"], ["bitfit"], ["lora", "bitfit"], ["bitfit", "lora"]], ids="+".join)
def test_a_computed_bias_is_the_tuners_to_change(inserts: list[str]) -> None:
    check(Computed().double(), inserts)


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


# ---- a fused projection whose bias is put together -------------------------------------------------------------------


def beit() -> nn.Module:
    return Beit(
        img_size=32, patch_size=16, embed_dim=24, depth=2, num_heads=2, num_classes=3, init_values=0.5,
        use_rel_pos_bias=True, use_abs_pos_emb=False,
    )  # fmt: skip


def eva() -> nn.Module:
    return timm.create_model("eva02_tiny_patch14_224", img_size=28, embed_dim=32, num_heads=2, num_classes=3, depth=2)


@pytest.mark.parametrize("insert", ["lora", "bitfit"])
@pytest.mark.parametrize(("make", "size"), [(beit, 32), (eva, 28)], ids=["beit", "eva"])
def test_both_forms_are_the_librarys_model_with_other_weights(make: Any, size: int, insert: str) -> None:
    model = awake(make()).double()
    rules = {"train": ["tuners"], "rules": [{"at": "mha", "on": ["q_proj"], "insert": insert}]}
    images = [torch.randn(batch, 3, size, size, dtype=torch.float64) for batch in (2, 3)]
    unbound, original = (
        fxtune.apply(model, rules, example_inputs=(images[0],), dtype=torch.float64, form=form).eval() for form in FORMS
    )
    awaken(unbound)
    original.load_state_dict(unbound.state_dict())
    assert len(tuners(unbound)) == {"lora": 4, "bitfit": 2}[insert]
    for x in images:
        expected, by_hand = with_gradients(changed(model, tuners(unbound), x), unbound)
        assert error(model(x).detach(), expected) > 1e-3
        for tuned in (unbound, original):
            output, gradients = with_gradients(tuned(x), tuned)
            assert error(output, expected) <= 1e-12
            for mine, theirs in zip(gradients, by_hand, strict=True):
                assert error(mine, theirs) <= 1e-10


def with_gradients(output: Tensor, tuned: nn.Module) -> tuple[Tensor, tuple[Tensor, ...]]:
    """An output and the gradients of a functional of it, of the tuners of a model."""
    goal = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return output.detach(), torch.autograd.grad((output * goal).sum(), list(tuners(tuned).values()))


def changed(model: nn.Module, own: dict[str, nn.Parameter], x: Tensor) -> Tensor:
    """What the library's model gives with ``W + B A`` in its projections' weights, or δ in the parts of their bias."""
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for attention in {name.partition(".tuners.")[0] for name in own}:
        by_name = {name.rpartition(".")[2]: w for name, w in own.items() if name.startswith(f"{attention}.tuners.")}
        if "delta" in by_name:
            for part, delta in zip("qkv", by_name["delta"].chunk(3), strict=True):
                weights[f"{attention}.{part}_bias"] = weights[f"{attention}.{part}_bias"] + delta
        else:
            name = f"{attention}.qkv.weight"
            weights[name] = weights[name] + by_name["B"] @ by_name["A"]
    result: Tensor = functional_call(model, weights, (x,))
    return result
