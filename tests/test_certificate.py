"""How agreement is measured, and the certificate of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import families
import fxtune
from fxtune.verifying import Agreement, Breach, Example
from fxtune.verifying.comparing import Measured, measure
from fxtune.verifying.inputs import Inputs
from fxtune.verifying.shrinking import smallest
from fxtune.verifying.weights import drawn_weights, representable
from verified import model, verified

# ---- how it is measured ----------------------------------------------------------------------------------------------


SHAPES = st.lists(st.integers(0, 4), max_size=4).map(torch.Size)


@given(st.dictionaries(st.sampled_from(["a.bias", "b.running_mean", "c", "d.weight"]), SHAPES), SHAPES, st.integers(0))
def test_drawn_weights_are_never_zero(shapes: dict[str, torch.Size], of_variance: torch.Size, seed: int) -> None:
    drawn = drawn_weights({**shapes, "b.running_var": of_variance}, seed % 2**31)
    variance = drawn.pop("b.running_var")
    assert variance.shape == of_variance and ((variance >= 0.5) & (variance <= 1)).all()
    assert {name: value.shape for name, value in drawn.items()} == shapes
    for value in drawn.values():
        size = value.abs() * (value.shape[1:].numel() if value.dim() > 1 else 1) ** 0.5
        assert ((size > 0.49) & (size < 1.01)).all()


def test_representable_values_stay_finite() -> None:
    extreme = torch.tensor([torch.finfo(torch.float32).min, 1.0 + 2**-20, float("-inf")])
    assert representable(extreme).tolist() == [-torch.finfo(torch.bfloat16).max, 1.0, float("-inf")]


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    example = families.texts(2, 8)
    signature: Any = fxtune.capture(model("bert"), example).signature
    return Inputs([signature], (), example)


@given(st.integers(0, 2**31))
def test_drawn_inputs_are_like_the_example(inputs: Inputs, seed: int) -> None:
    example = inputs.example(seed)
    ids, mask = inputs.draw(example).tensors().values()
    batch, length = example.sizes["input_ids.shape[0]"], example.sizes["input_ids.shape[1]"]
    assert ids.shape == mask.shape == (batch, length) and 1 <= batch <= 4 and 1 <= length <= 16
    assert ids.min() >= 0 and ids.max() < 40 and ids.dtype is mask.dtype is torch.int64
    assert ((mask == 0) | (mask == 1)).all() and (mask.sum(1) >= 1).all()
    assert (mask.diff(dim=1) <= 0).all() or (mask.diff(dim=1) >= 0).all()
    full = inputs.draw(example.model_copy(update={"padded": False})).tensors()
    assert full["attention_mask"].all() and torch.equal(full["input_ids"], ids)
    for smaller in inputs.smaller(example):
        assert smaller != example and inputs.fits(smaller)
        assert all(size <= example.sizes[key] for key, size in smaller.sizes.items())


def test_draws_differ_in_size_and_in_padding(inputs: Inputs) -> None:
    drawn = [inputs.draw(inputs.example(seed)).tensors()["attention_mask"] for seed in range(60)]
    assert {mask.shape[0] for mask in drawn} == {1, 2, 3, 4} and len({mask.shape[1] for mask in drawn}) > 10
    assert any((mask[:, 0] == 0).any() for mask in drawn) and any((mask[:, -1] == 0).any() for mask in drawn)
    assert any(mask.all() and mask.numel() > 1 for mask in drawn)


def test_inputs_are_drawn_in_the_size_of_the_example() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, added: dict[str, Tensor], mask: Tensor) -> Tensor:
            return x * added["scale"] * mask

    given = {
        "x": torch.tensor([100.0, -100.0]).repeat(2, 5, 2),
        "added": {"scale": torch.full((4,), float("-inf"))},
        "mask": torch.tensor([[1.0], [0.0]]).expand(2, 5).unsqueeze(-1).clone(),
    }
    signature: Any = fxtune.capture(Net(), given).signature
    drawn = Inputs([signature], (), given)
    example = Example(seed=3, sizes={"x.shape[0]": 4, "x.shape[1]": 50})
    call = drawn.draw(example)
    assert list(call.tensors()) == ["x", "added['scale']", "mask"]
    x, scale, mask = call.tensors().values()
    assert x.shape == (4, 50, 4) and x.dtype is torch.float64 and 80 < x.square().mean().sqrt() < 120
    assert (scale == float("-inf")).all()
    assert mask.shape == (4, 50, 1) and mask.all()  # of one entry in the last dimension, one at least is kept
    assert call.kwargs["added"]["scale"] is scale


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8))
def test_a_broken_mean_has_a_broken_example(pairs: list[tuple[float, float]]) -> None:
    """So there is always an example to make small."""
    each = [Measured(unbound, original, unbound, "") for unbound, original in pairs]
    if all(one.holds("outputs", torch.float32) for one in each):
        number, bound = Measured.over(each).judged("outputs", torch.float32)
        assert number <= bound * (1 + 1e-12)


def test_errors_are_relative_to_what_they_are_errors_of() -> None:
    truth = {"a": torch.tensor([1.0, -4.0]), "zero": torch.tensor([0.0]), "inf": torch.tensor([float("inf"), 2.0])}
    found = {**truth, "a": torch.tensor([1.0, -4.0 + 2**-10])}
    measured = measure("outputs", torch.float64, truth, found)
    assert (measured.tensor, measured.largest) == ("a", 2**-12)
    assert measured.unbound == pytest.approx(2**-12 / 3**0.5)
    for other in ({**truth, "zero": torch.tensor([1e-30])}, {"a": truth["a"], "zero": truth["zero"]},
                  {**truth, "a": torch.tensor([1.0])}, {**truth, "a": torch.tensor([1.0, float("nan")])}):  # fmt: skip
        broken = measure("outputs", torch.bfloat16, truth, other, other)
        assert broken.largest == float("inf") and not broken.holds("outputs", torch.bfloat16)
    # A gradient that is zero but for rounding, beside one of 4.
    rounded = {**truth, "zero": torch.tensor([1e-15])}
    assert measure("gradients", torch.float64, truth, rounded).holds("gradients", torch.float64)
    wrong = {**truth, "zero": torch.tensor([1e-13])}
    assert not measure("gradients", torch.float64, truth, wrong).holds("gradients", torch.float64)


@given(st.integers(0, 10), st.integers(1, 10))
def test_shrinking_goes_to_the_smallest_that_fails(size: int, least: int) -> None:
    def smaller(example: Example) -> list[Example]:
        old = example.sizes["n"]
        return [Example(seed=0, sizes={"n": n}) for n in (1, old // 2, old - old // 4, old - 1) if 0 < n < old]

    start = Example(seed=0, sizes={"n": least + size})
    found, finding = smallest(start, 0, smaller, lambda one: one.sizes["n"] if one.sizes["n"] >= least else None)
    assert found.sizes["n"] == least and finding == (least if size else 0)


# ---- the certificate, and what is left behind ------------------------------------------------------------------------

NUMBER = st.floats(0, allow_nan=False)
AGREEMENT = st.builds(
    Agreement, dtype=st.text(), of=st.sampled_from(["outputs", "gradients"]), tensor=st.text(), largest=NUMBER,
    unbound=NUMBER, original=NUMBER, bound=NUMBER, holds=st.booleans(),
)  # fmt: skip
EXAMPLE = st.builds(Example, seed=st.integers(0), sizes=st.dictionaries(st.text(), st.integers()), padded=st.booleans())
BREACH = st.builds(
    Breach, example=EXAMPLE, dtype=st.text(), of=st.sampled_from(["outputs", "gradients"]), tensor=st.text(),
    error=NUMBER, bound=NUMBER, reproduce=st.text(),
    shapes=st.dictionaries(st.text(), st.lists(st.integers()).map(tuple)),
)  # fmt: skip
TEXTS = st.lists(st.text()).map(tuple)
CERTIFICATE = st.builds(
    fxtune.Certificate, model=st.text(), rules=TEXTS, tuners=TEXTS, examples=st.integers(), seed=st.integers(),
    agreement=st.lists(AGREEMENT, max_size=3).map(tuple), versions=st.dictionaries(st.text(), st.text()),
    passed=st.booleans(), breach=st.none() | BREACH,
)  # fmt: skip


@given(CERTIFICATE)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_a_certificate_is_saved_and_loaded(tmp_path: Path, certificate: fxtune.Certificate) -> None:
    certificate.save(tmp_path / "certificate.json")
    assert fxtune.Certificate.load(tmp_path / "certificate.json") == certificate
    json.loads((tmp_path / "certificate.json").read_text("utf-8"), parse_constant=lambda name: pytest.fail(name))
    assert str(certificate)


def test_a_certificate_is_saved_where_there_is_no_folder_yet(tmp_path: Path) -> None:
    certificate = fxtune.Certificate(
        model="m", rules=(), tuners=(), examples=1, seed=0, agreement=(), versions={}, passed=True
    )
    certificate.save(tmp_path / "new" / "below.json")
    assert fxtune.Certificate.load(tmp_path / "new" / "below.json") == certificate
    with pytest.raises(fxtune.CheckpointError, match="can't be written"):
        certificate.save(tmp_path / "new" / "below.json" / "no.json")


def test_what_is_no_certificate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"model": 1}', "utf-8")
    for path in (tmp_path / "other.json", tmp_path / "none.json"):
        with pytest.raises(fxtune.SourceError, match="certificate") as raised:
            fxtune.Certificate.load(path)
        assert raised.value.where == str(path)


def test_the_same_seed_gives_the_same_certificate_and_leaves_the_model_alone() -> None:
    subject = model("vit")
    before = {name: tensor.clone() for name, tensor in subject.state_dict().items()}
    flags = [(module.training, dict(module.__dict__)) for module in subject.modules()]
    places = [tensor.data_ptr() for tensor in subject.state_dict().values()]
    torch.manual_seed(0)
    random = torch.get_rng_state()
    certificates = [verified("vit", "bitfit", 2, seed=seed) for seed in (7, 7, 8)]
    assert certificates[0] == certificates[1] and certificates[0].agreement != certificates[2].agreement
    assert certificates[0].rules == ("bitfit",) and certificates[0].seed == 7
    assert certificates[0].versions.keys() == {"fxtune", "torch", "python", "device"}
    assert "biased <- bitfit" in certificates[0].tuners[0]
    assert torch.equal(torch.get_rng_state(), random)
    after = subject.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert [(module.training, dict(module.__dict__)) for module in subject.modules()] == flags
    assert [tensor.data_ptr() for tensor in after.values()] == places
    assert all(p.requires_grad and p.grad is None for p in subject.parameters())
