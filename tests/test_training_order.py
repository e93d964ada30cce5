"""Which samples a step has, and how fast it learns."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxtune.recipes import Schedule
from fxtune.training.order import Key, Order, Pieces, seed_of, shares
from fxtune.training.schedule import factor

orders = st.builds(Order, st.integers(1, 50), st.integers(1, 20), st.integers(0, 3))


@given(orders, st.integers(0, 3))
def test_an_epoch_has_every_sample_once(order: Order, epoch: int) -> None:
    steps = [order.keys(epoch * order.steps + i) for i in range(order.steps)]
    assert sorted(key.sample for step in steps for key in step) == list(range(order.samples))
    assert {key.epoch for step in steps for key in step} == {epoch}
    assert all(len(step) == order.batch for step in steps[:-1]) and 1 <= len(steps[-1]) <= order.batch


def test_epochs_and_seeds_differ() -> None:
    found = {tuple(key.sample for key in Order(30, 30, seed).keys(epoch)) for seed in range(3) for epoch in range(3)}
    assert len(found) == 9
    assert Order(30, 30, 1).keys(2) == Order(30, 30, 1).keys(2)


@given(orders, st.integers(1, 4), st.integers(1, 4), st.integers(0, 100))
def test_every_sample_counts_once_whatever_the_processes(
    order: Order, processes: int, accumulate: int, step: int
) -> None:
    loaded = [
        list(Pieces(order, range(step, step + 2), process, processes, accumulate)) for process in range(processes)
    ]
    assert all(len(pieces) == 2 * accumulate and all(pieces) for pieces in loaded)
    for i in range(2):
        here = [key for pieces in loaded for piece in pieces[i * accumulate : (i + 1) * accumulate] for key in piece]
        assert [key for key in here if key.counts] == order.keys(step + i)


@given(st.lists(st.integers(), min_size=1, max_size=20, unique=True), st.integers(1, 8))
def test_shares_are_even(numbers: list[int], count: int) -> None:
    sizes = [sum(key.counts for key in share) for share in shares([Key(0, n) for n in numbers], count)]
    assert len(sizes) == count and sum(sizes) == len(numbers) and max(sizes) - min(sizes) <= 1


def test_seeds_depend_on_every_part() -> None:
    found = {seed_of("step", a, b) for a in range(20) for b in range(20)} | {seed_of("order", 1, 1)}
    assert len(found) == 401 and all(0 <= seed < 2**63 for seed in found)


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("warmup", "each", "epochs"), [(0, 5, 4), (1, 5, 4), (2.5, 4, 10), (0.6, 7, 10)])
def test_the_learning_rate_is_that_of_torchs_schedulers(shape: str, warmup: float, each: int, epochs: int) -> None:
    rise, total = round(warmup * each), each * epochs
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    falls = {
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total - rise),
        "linear": lambda: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total - rise),
        "constant": lambda: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
    }
    fall = falls[shape]()
    scheduler: torch.optim.lr_scheduler.LRScheduler = fall
    if rise:
        start = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / rise, 1.0, max(1, rise - 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own schedulers call one another in a way that they warn of
            scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [start, fall], [rise])
    for step in range(total):
        ours = factor(Schedule(shape=shape, warmup=warmup), step, total, each)  # type: ignore[arg-type]
        assert math.isclose(ours, optimizer.param_groups[0]["lr"], abs_tol=1e-9), step
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler.step()


def test_a_warm_up_that_is_longer_than_the_training() -> None:
    found = [factor(Schedule(warmup=10), step, 4, 2) for step in range(4)]
    assert found == [0.25, 0.5, 0.75, 1.0]
