"""A tuned model in two halves: together they are the model, bit for bit, and no more crosses than must."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import assume, given, settings
from torch import Tensor, nn
from torch.nn import functional as F

import fxtune
from effort import examples
from families import FAMILIES, build
from fxtune.errors import InputError, PlanError
from fxtune.splitting import Split, split
from fxtune.tuned import TunedModel
from split_programs import IN_PLACE, WIDTH, Program, programs


def with_bypass(family: str, rules: str = "res_bypass", **settings: Any) -> TunedModel:
    """A tuned model whose bypass has an effect."""
    inputs = FAMILIES[family].inputs(2)
    tuned = fxtune.apply(build(family), rules, seed=0, example_inputs=((), inputs), **settings)
    made = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in tuned.trainable:
            weight = tuned.get_parameter(name)
            weight.add_(torch.randn(weight.shape, generator=made), alpha=0.2)
    return tuned


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    pairs = list(zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True))
    assert pairs
    for a, b in pairs:
        assert torch.equal(a, b)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_trunk_then_branch_is_the_model(family: str, training: bool) -> None:
    tuned = with_bypass(family).train(training)
    inputs, loss = FAMILIES[family].inputs(3), FAMILIES[family].loss
    torch.manual_seed(0)
    expected = tuned(**inputs)
    torch.manual_seed(0)
    features = tuned.compute_features(**inputs)
    found = tuned.from_features(features)
    assert_same(found, expected)
    assert not any(value.requires_grad for value in features.values())
    ours, theirs = gradients(tuned, loss(found, 3)), gradients(tuned, loss(expected, 3))
    assert ours.keys() == theirs.keys() == set(tuned.trainable)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_halves_hold_the_models_own_weights() -> None:
    tuned = with_bypass("vit")
    features = tuned.compute_features(**FAMILIES["vit"].inputs(3))
    before = tuned.from_features(features)
    with torch.no_grad():
        tuned.get_parameter("head.weight").mul_(2)
        tuned.get_parameter("head.bias").zero_()
    assert not torch.equal(tuned.from_features(features), before)
    tuned.double()
    images = FAMILIES["vit"].inputs(3)["x"].double()
    assert torch.equal(tuned.from_features(tuned.compute_features(images)), tuned(images))


def test_what_crosses_are_the_stems() -> None:
    features = with_bypass("vit").compute_features(**FAMILIES["vit"].inputs(3))
    assert list(features) == ["pos_drop", "blocks.0.add_1", "blocks.1.add_1"]
    maps = with_bypass("unet").compute_features(**FAMILIES["unet"].inputs(3))
    assert len(maps) == 6  # x_5 and the gate's x are one value; tokens and maps of one stem are, too


@pytest.mark.parametrize("family", ["vit", "bert"])
def test_one_token_crosses_where_the_head_reads_one(family: str) -> None:
    features = with_bypass(family).compute_features(**FAMILIES[family].inputs(3))
    assert [tuple(value.shape) for value in features.values()] == [(3, 1, 32)] * 3


def test_a_part_does_not_cross_beside_the_whole() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.trained = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.frozen(x)
            whole, turned, part = self.trained(y), self.trained(y.transpose(1, 2)), self.trained(y[:, :1])
            again = self.trained(y[:, :1])
            return whole + turned + part + again

    model, x = Reading(), torch.randn(3, 4, 4)
    halves = halves_of(model, x)
    assert len(halves.features(x)) == 1
    assert torch.equal(halves.output(halves.features(x)), model(x))


def test_equal_parts_of_other_layouts_are_two_values() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.trained = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.frozen(x)
            return self.trained(y[:, :1]) + 2 * self.trained(y.transpose(1, 2)[:, :1])

    model, x = Reading(), torch.randn(3, 4, 4)
    halves = halves_of(model, x)
    assert len(halves.features(x)) == 2
    assert torch.equal(halves.output(halves.features(x)), model(x))


def test_what_is_overwritten_later_crosses_as_it_was_read() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.trained = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.frozen(x)
            part = y[:, 1:]
            part.add_(1)
            first = self.trained(y) + self.trained(part).mean(1, keepdim=True)
            part.mul_(2)
            return first * self.frozen(y).sum()

    model, x = Overwriting(), torch.randn(3, 4, 4)
    halves = halves_of(model, x)
    with torch.no_grad():
        assert torch.equal(halves.output(halves.features(x)), model(x))


@pytest.mark.parametrize("trained_writes", [False, True])
def test_what_cannot_be_parted_is_refused(trained_writes: bool) -> None:
    class Entangled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.trained = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.frozen(x)
            first = self.trained(y)
            y[:, 1:].add_(first[:, 1:] if trained_writes else 1)
            return first + self.trained(y)

    with pytest.raises(PlanError, match="written"):
        halves_of(Entangled(), torch.randn(3, 4, 4))


def test_a_size_is_told_by_what_crosses_anyway() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.trained = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.frozen(x)
            return self.trained(y.mean(1)).reshape(x.shape[0], 2, 2)

    model, x = Sized(), torch.randn(3, 5, 4)
    halves = halves_of(model, x)
    assert [value.shape for value in halves.features(x).values()] == [(3, 4)]
    other = torch.randn(7, 6, 4)
    assert torch.equal(halves.output(halves.features(other)), model(other))


def halves_of(model: nn.Module, x: Tensor) -> Split:
    return split(fxtune.capture(model, (x,)))


@settings(max_examples=examples(20, 400))
@given(programs())
def test_any_graph_can_be_cut(program: Program) -> None:
    x = torch.randn(3, 4, WIDTH, generator=torch.Generator().manual_seed(0))
    try:
        gradients(program, total(copy.deepcopy(program)(x)))
    except RuntimeError:  # torch refuses a backward pass through what was overwritten
        assume(False)
    graph = fxtune.capture(program, (x,))
    try:
        halves = split(graph)
    except PlanError as error:
        assume("written" not in str(error))
        raise
    # A value that is overwritten later crosses as a copy, whose strides and alignment kernels may go by.
    tolerance = 1e-5 if any(kind in IN_PLACE for kind, *_ in program.steps) else 0.0
    for training in (False, True):
        program.train(training)
        torch.manual_seed(0)
        features = halves.features(x)
        ours = halves.output(features)
        torch.manual_seed(0)
        theirs = graph(x)
        if not training or all(kind != "dropped" for kind, *_ in program.steps):  # noise is drawn in another order
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
            a, b = gradients(program, total(ours)), gradients(program, total(theirs))
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def total(values: tuple[Tensor, ...]) -> Tensor:
    return sum(
        ((value * torch.linspace(-1, 1, value.numel()).view_as(value)).sum() for value in values), torch.zeros(())
    )


# Contexts


def test_each_half_opens_its_contexts() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.trained = nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                y = self.trained(self.frozen(x))
            with torch.no_grad():
                shift = self.frozen(y.float())
            return F.softmax(self.trained(y.float()) + shift, -1)

    model, x = Mixed(), torch.randn(3, 8)
    halves = halves_of(model, x)
    assert "torch.autocast" in halves.trunk.code and "torch.autocast" in halves.branch.code
    assert "torch.set_grad_enabled(False)" in halves.branch.code
    assert next(iter(halves.features(x).values())).dtype is torch.bfloat16
    assert torch.equal(halves.output(halves.features(x)), model(x))


# Bad input


def test_without_a_bypass_there_are_no_features() -> None:
    tuned = fxtune.apply(build("vit"), "lora")
    with pytest.raises(PlanError, match="res_bypass"):
        tuned.compute_features(**FAMILIES["vit"].inputs(2))
    with pytest.raises(PlanError, match="res_bypass"):
        tuned.from_features({})


def test_features_of_another_model_are_refused() -> None:
    tuned = with_bypass("vit")
    features = tuned.compute_features(**FAMILIES["vit"].inputs(2))
    with pytest.raises(InputError, match="it reads blocks"):
        tuned.from_features({"other": next(iter(features.values()))})
    features["pos_drop"] = features["pos_drop"].expand(-1, 17, -1)
    with pytest.raises(InputError, match=r"pos_drop is \(2, 17, 32\), where it reads \('any', 1, 32\)"):
        tuned.from_features(features)
