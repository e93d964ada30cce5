"""The two forms of the tuners of one operation, or behind one: `forward` against `in_weights` and `in_sequence`."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fxtune import tuners
from fxtune.errors import RuleError
from fxtune.tuners import Placement
from fxtune.tuners.bitfit import BitFit
from fxtune.tuners.lora import Lora
from fxtune.tuners.res_adapter import ResAdapter

SEEDS = st.integers(0, 2**32)
SIZES = st.integers(1, 9)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def awake(tuner: nn.Module, seed: int) -> nn.Module:
    """In float64, every weight away from zero."""
    tuner.double()
    for i, weight in enumerate(tuner.parameters()):
        weight.data = draw(seed + i + 1, *weight.shape)
    return tuner


def agree(one: Callable[..., Tensor], other: Callable[..., Tensor], weights: list[Tensor]) -> None:
    """Outputs to 1e-12 of the largest number, gradients of `weights` to 1e-10."""
    results = [one(), other()]
    goal = draw(1, *results[1].shape)
    gradients = [torch.autograd.grad((result * goal).sum(), weights, allow_unused=True) for result in results]
    close(*results, 1e-12)
    for found, expected in zip(*gradients, strict=True):
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            close(found, expected, 1e-10)


def close(found: Tensor, expected: Tensor, bound: float) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert (found - expected).abs().max() <= bound * expected.abs().max().clamp(min=1e-3)


def assert_caught(check: Callable[..., None], faulty: type[nn.Module], *strategies: st.SearchStrategy[Any]) -> None:
    """The property fails for a class with a fault."""

    @settings(report_multiple_bugs=False, database=None, phases=[Phase.generate])
    @given(st.tuples(*strategies))
    def compare(drawn: tuple[Any, ...]) -> None:
        check(faulty, *drawn)

    with pytest.raises(AssertionError):
        compare()


# ---- lora ------------------------------------------------------------------------------------------------------------


def lora_forms_agree(cls: type[Lora], seed: int, d_in: int, d: int, rank: int, alpha: float | None, bias: bool) -> None:
    rank = min(rank, d_in, d)
    place = Placement(d, 1, "linear", width_in=d_in, operation="linear")
    tuner: Any = awake(cls(place, rank=rank, alpha=alpha), seed)
    x, w = draw(seed, 2, 3, d_in).requires_grad_(), draw(seed + 9, d, d_in)
    b = draw(seed + 8, d) if bias else None
    weights = [x, *tuner.parameters()]
    agree(lambda: F.linear(x, w, b) + tuner(x), lambda: F.linear(x, *tuner.in_weights(w, b)), weights)


LORAS = (SEEDS, SIZES, SIZES, SIZES, st.none() | st.floats(0.1, 30), st.booleans())


@given(*LORAS)
def test_lora_beside_a_map_and_in_its_weight(
    seed: int, d_in: int, d: int, rank: int, alpha: float | None, bias: bool
) -> None:
    lora_forms_agree(Lora, seed, d_in, d, rank, alpha, bias)


class NoFactor(Lora):
    def in_weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.B @ self.A, bias


class Turned(Lora):
    def in_weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        update = super().in_weights(weight, bias)[0] - weight
        return weight + (update.T if update.shape[0] == update.shape[1] else update), bias


class LostBias(Lora):
    def in_weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return super().in_weights(weight, bias)[0], None


class Detached(Lora):
    def in_weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.factor * (self.B @ self.A.detach()), bias


@pytest.mark.parametrize("faulty", [NoFactor, Turned, LostBias, Detached])
def test_a_fault_in_lora_is_seen(faulty: type[Lora]) -> None:
    assert_caught(lora_forms_agree, faulty, *LORAS)


@given(SEEDS, SIZES, SIZES, SIZES)
def test_lora_starts_as_its_paper_says(seed: int, d_in: int, d: int, rank: int) -> None:
    rank = min(rank, d_in, d)
    place = Placement(d, 1, "mha.q_proj", width_in=d_in)
    tuner = tuners.build("lora", {"rank": rank}, place, seed=seed)
    state = tuner.state_dict()
    assert {name: tuple(weight.shape) for name, weight in state.items()} == {"A": (rank, d_in), "B": (d, rank)}
    assert not state["B"].any()
    # Kaiming-uniform with a = √5: within √(6 / ((1 + 5) D_in)).
    assert 0 < state["A"].abs().max() <= 1 / math.sqrt(d_in)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x, w = (draw(seed, 2, 3, d_in) * 100).to(dtype), draw(seed, d, d_in).to(dtype)
        y, added = F.linear(x, w), tuner(x)
        assert added.dtype == dtype and torch.equal(y + added, y)
        assert torch.equal(tuner.in_weights(w, None)[0], w)


def test_lora_fills_its_bound() -> None:
    tuner = tuners.build("lora", {"rank": 64}, Placement(64, 1, "linear", width_in=100), seed=0)
    assert tuner.A.abs().max() > 0.99 / 10 and abs(float(tuner.A.detach().std()) - 0.1 / math.sqrt(3)) < 1e-3


@given(SEEDS, st.sampled_from([torch.bfloat16, torch.float16, torch.float32]))
def test_lora_sums_in_the_wider_dtype(seed: int, dtype: torch.dtype) -> None:
    tuner = tuners.build("lora", {"rank": 3, "alpha": 5.0}, Placement(6, 1, "linear", width_in=4), seed=seed)
    tuner.B.data = draw(seed, 6, 3).float()
    weight, bias = draw(seed, 6, 4).to(dtype), draw(seed + 1, 6).to(dtype)
    summed, same = tuner.in_weights(weight, bias)
    assert same is bias and summed.dtype == dtype
    exact = weight.double() + 5 / 3 * tuner.B.double() @ tuner.A.double()
    assert torch.allclose(summed.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)
    summed.sum().backward()
    assert tuner.A.grad.dtype == tuner.B.grad.dtype == torch.float32


def test_dropout_is_of_the_input_and_in_training_alone() -> None:
    tuner = tuners.build("lora", {"rank": 4, "dropout": 0.5}, Placement(4, 1, "linear", width_in=999), seed=0)
    tuner.A.data.fill_(1.0)
    tuner.B.data.fill_(1.0)
    x = torch.ones(1, 1, 999)
    assert torch.equal(tuner.eval()(x), torch.full((1, 1, 4), 3996.0))
    torch.manual_seed(0)
    dropped = tuner.train()(x).detach()
    # What is left of the input is doubled, and is the same for all channels of the result.
    assert len(dropped.unique()) == 1 and 0 < abs(float(dropped[0, 0, 0]) - 3996) < 800
    assert float(dropped[0, 0, 0]) % 8 == 0


@pytest.mark.parametrize("operation", ["conv", "conv_transpose2d", "layer_norm", "embedding"])
def test_lora_goes_on_linear_maps(operation: str) -> None:
    place = Placement(4, 1, "biased", operation=operation, path="stem.conv")
    with pytest.raises(RuleError, match=f"not on '{operation}'") as error:
        tuners.build("lora", {}, place)
    assert "`stem.conv`" in str(error.value)


# ---- bitfit ----------------------------------------------------------------------------------------------------------

OPERATIONS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], int]] = {
    # the operation of (x, weight, bias), the shape of its weight for D = 6 and D_in = 4, the channel axis of its result
    "linear": (F.linear, (6, 4), -1),
    "conv": (lambda x, w, b: F.conv1d(x.mT, w, b), (6, 4, 2), 1),
    "transposed conv": (lambda x, w, b: F.conv_transpose1d(x.mT, w, b, stride=2), (4, 6, 2), 1),
    "grouped conv": (lambda x, w, b: F.conv1d(x.mT, w, b, groups=2), (6, 2, 1), 1),
    "layer norm": (lambda x, w, b: F.layer_norm(F.pad(x, (0, 2), value=0.5), (6,), w, b), (6,), -1),
    "group norm": (lambda x, w, b: F.group_norm(F.pad(x, (0, 2), value=0.5).mT, 2, w, b), (6,), 1),
}


def bitfit_forms_agree(cls: type[BitFit], seed: int, name: str, bias: bool) -> None:
    operation, shape, axis = OPERATIONS[name]
    tuner: Any = awake(cls(Placement(6, 1, "biased")), seed)
    x, w = draw(seed, 2, 3, 4).requires_grad_(), draw(seed + 9, *shape)
    b = draw(seed + 8, 6) if bias else None

    def beside() -> Tensor:
        y = operation(x, w, b)
        return y + tuner(y.movedim(axis, -1)).movedim(-1, axis)

    agree(beside, lambda: operation(x, *tuner.in_weights(w, b)), [x, tuner.delta])


BITFITS = (SEEDS, st.sampled_from(sorted(OPERATIONS)), st.booleans())


@given(*BITFITS)
def test_bitfit_behind_an_operation_and_in_its_bias(seed: int, name: str, bias: bool) -> None:
    bitfit_forms_agree(BitFit, seed, name, bias)


class OldBiasLost(BitFit):
    def in_weights(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor]:
        return weight, self.delta


class OneForAll(BitFit):
    def forward(self, x: Tensor) -> Tensor:
        return self.delta.mean().expand(*x.shape[:-1], len(self.delta))


@pytest.mark.parametrize("faulty", [OldBiasLost, OneForAll])
def test_a_fault_in_bitfit_is_seen(faulty: type[BitFit]) -> None:
    assert_caught(bitfit_forms_agree, faulty, *BITFITS)


@given(SIZES, SIZES, st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_bitfit_starts_at_zero_and_keeps_dtypes(d: int, d_in: int, dtype: torch.dtype) -> None:
    tuner = tuners.build("bitfit", {}, Placement(d, 1, "biased", width_in=d_in), seed=0)
    assert {name: tuple(weight.shape) for name, weight in tuner.state_dict().items()} == {"delta": (d,)}
    for width in (d, d_in):  # of what it is given only the number of tokens counts
        added = tuner(torch.ones(2, 3, width, dtype=dtype))
        assert added.shape == (2, 3, d) and added.dtype == dtype and not added.any()
    w, b = torch.ones(d, d_in, dtype=dtype), torch.full((d,), 0.1, dtype=dtype)
    weight, bias = tuner.in_weights(w, b)
    assert weight is w and torch.equal(bias, b) and bias.dtype == dtype
    assert tuner.in_weights(w, None)[1].dtype == dtype
    assert tuner.in_weights(None, None)[0] is None


# ---- the adapter behind an operation ---------------------------------------------------------------------------------


def adapter_forms_agree(cls: type[ResAdapter], seed: int, d: int, dim: int, scale: Any, activation: Any) -> None:
    tuner: Any = awake(cls(Placement(d, 1, "ffn"), dim=dim, scale=scale, activation=activation), seed)
    y = draw(seed, 2, 3, d).requires_grad_()
    agree(lambda: y + tuner(y), lambda: tuner.in_sequence(y), [y, *tuner.parameters()])


ADAPTERS = (
    SEEDS,
    SIZES,
    SIZES,
    st.sampled_from(["none", "scalar", "channel", "gate"]),
    st.sampled_from(["gelu", "relu"]),
)


@given(*ADAPTERS)
def test_the_adapter_beside_its_output_and_in_sequence(
    seed: int, d: int, dim: int, scale: Any, activation: Any
) -> None:
    adapter_forms_agree(ResAdapter, seed, d, dim, scale, activation)


class NoResidual(ResAdapter):
    def in_sequence(self, y: Tensor) -> Tensor:
        return self(y)


class LostUpBias(ResAdapter):
    def in_sequence(self, y: Tensor) -> Tensor:
        z: Tensor = self.scale(F.linear(self.activation(self.down(y)), self.up.weight))
        return y + z


class ScaledResidual(ResAdapter):
    def in_sequence(self, y: Tensor) -> Tensor:
        z: Tensor = self.scale(y + self.up(self.activation(self.down(y))))
        return z


@pytest.mark.parametrize("faulty", [NoResidual, LostUpBias, ScaledResidual])
def test_a_fault_in_the_adapter_is_seen(faulty: type[ResAdapter]) -> None:
    assert_caught(adapter_forms_agree, faulty, *ADAPTERS)


@given(SEEDS, st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]))
def test_an_untrained_adapter_in_sequence_changes_no_bit(seed: int, dtype: torch.dtype) -> None:
    tuner: Any = tuners.build("res_adapter", {}, Placement(8, 1, "ffn"), seed=seed)
    y = (draw(seed, 2, 3, 8) * 100).to(dtype)
    assert torch.equal(tuner.in_sequence(y), y) and tuner.in_sequence(y).dtype == dtype
