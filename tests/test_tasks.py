"""Many tasks on one backbone: each gives what its own model gives, and the backbone runs once."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxtune
from effort import examples
from families import FAMILIES, build, tuned_on
from fxtune.errors import CheckpointError, FxtuneError, InputError, PlanError
from fxtune.tasks import MultiTask, batched
from fxtune.tuned import TunedModel

RELATIVE = 1e-5
"""Batched matrix products sum in another order."""


def task(model: nn.Module, family: str, seed: int, rules: Any = "res_bypass", **options: Any) -> TunedModel:
    return tuned_on(model, family, rules, seed, **options).train()


def leaves(result: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def assert_close(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    for a, b in zip(leaves(found), leaves(expected), strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= RELATIVE * b.abs().max()


def assert_gives_what_they_give(many: MultiTask, tasks: dict[str, TunedModel], inputs: dict[str, Any]) -> None:
    found = many(**inputs)
    assert list(found) == many.tasks == list(tasks)
    for name, tuned in tasks.items():
        assert_close(found[name], tuned(**inputs))


def images(batch: int = 3) -> dict[str, Any]:
    return FAMILIES["vit"].inputs(batch)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build("vit")


SMALL: dict[str, dict[str, Any]] = {
    "birds": {"seed": 1},
    "cars": {"seed": 2},
    "slim": {"seed": 3, "dim": 4},
    "vertical": {"seed": 4, "rules": "res_bypass_vertical"},
    "many classes": {"seed": 5, "num_classes": 7},
    "flat": {"seed": 6, "rules": {"bypass": {"horizontal": {"res_adapter": {}}, "stems": {"drop": [0]}}}},
    "planes": {"seed": 7},
}


@pytest.fixture(scope="module")
def pool(model: nn.Module) -> dict[str, TunedModel]:
    return {name: task(model, "vit", **options) for name, options in SMALL.items()}


@pytest.fixture
def tasks(pool: dict[str, TunedModel]) -> dict[str, TunedModel]:
    return {name: pool[name] for name in ("birds", "cars", "slim")}


# What it computes


@pytest.mark.parametrize("family", FAMILIES)
def test_every_task_gives_what_its_model_gives(family: str) -> None:
    model = build(family)
    tasks = {
        "one": task(model, family, 1),
        "two": task(model, family, 2),
        "small": task(model, family, 3, dim=3),
        "none": task(model, family, 4, "res_bypass_none"),
    }
    many = fxtune.multitask(model, tasks)
    inputs = FAMILIES[family].inputs(4)
    assert_gives_what_they_give(many, tasks, inputs)
    with torch.no_grad():
        assert_gives_what_they_give(many, tasks, inputs)
    chosen = ["two", "small", "one", "two"]
    found = many(**inputs, task=chosen)
    for i, name in enumerate(chosen):
        for a, b in zip(leaves(found[i]), leaves(tasks[name](**inputs)), strict=True):
            assert a.shape == b[i].shape and (a - b[i]).abs().max() <= RELATIVE * b.abs().max()


@pytest.mark.parametrize("numbers", [1, 10_000, 2**20])
def test_however_many_run_together(
    numbers: int, model: nn.Module, pool: dict[str, TunedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Branches run one by one, some at a time, or all: values here have 2,176 numbers."""
    monkeypatch.setattr(batched, "_NUMBERS", numbers)
    tasks = {name: pool[name] for name in ("birds", "cars", "planes")}
    many = fxtune.multitask(model, tasks)
    assert_gives_what_they_give(many, tasks, images(4))
    chosen = ["planes", "birds", "planes", "cars"]
    for i, (name, found) in enumerate(zip(chosen, many(**images(4), task=chosen), strict=True)):
        assert_close(found, tasks[name](**images(4))[i])


def test_tasks_from_folders(model: nn.Module, tasks: dict[str, TunedModel], tmp_path: Path) -> None:
    for name in ("cars", "slim"):
        tasks[name].save(tmp_path / name)
    many = fxtune.multitask(model, {"birds": tasks["birds"], "cars": tmp_path / "cars", "slim": f"{tmp_path}/slim"})
    assert_gives_what_they_give(many, tasks, images())
    for other, found in (("vit", "were trained beside other weights"), ("bert", "of another structure")):
        inputs = FAMILIES[other].inputs(2)
        stranger = fxtune.apply(build(other, seed=1), "res_bypass", example_inputs=((), inputs))
        stranger.save(tmp_path / other)
        with pytest.raises(CheckpointError, match=found):
            fxtune.multitask(model, {"birds": tasks["birds"], "planes": tmp_path / other})


@settings(max_examples=examples(15, 200))
@given(st.data())
def test_tasks_come_and_go(data: st.DataObject) -> None:
    model, pool = _MODEL[0], _POOL
    names = data.draw(st.permutations(sorted(pool)))
    here = {name: pool[name] for name in names[: data.draw(st.integers(1, 3))]}
    many = fxtune.multitask(model, here)
    for _ in range(data.draw(st.integers(0, 4))):
        if len(here) > 1 and data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(sorted(here)))
            many.drop(gone)
            del here[gone]
        elif len(here) < len(pool):
            new = data.draw(st.sampled_from(sorted(pool.keys() - here.keys())))
            many.add(new, pool[new])
            here[new] = pool[new]
    inputs = images(data.draw(st.integers(1, 4)))
    assert_gives_what_they_give(many, here, inputs)
    chosen = data.draw(st.lists(st.sampled_from(sorted(here)), min_size=len(inputs["x"]), max_size=len(inputs["x"])))
    expected = [here[name](**inputs)[i] for i, name in enumerate(chosen)]
    by_place = [many.tasks.index(name) for name in chosen]
    for given_tasks in (chosen, by_place, torch.tensor(by_place)):
        for a, b in zip(many(**inputs, task=given_tasks), expected, strict=True):
            assert a.shape == b.shape and (a - b).abs().max() <= RELATIVE * b.abs().max().clamp(min=1)


_MODEL: list[nn.Module] = []
_POOL: dict[str, TunedModel] = {}


@pytest.fixture(autouse=True, scope="module")
def _drawn_from(model: nn.Module, pool: dict[str, TunedModel]) -> None:
    _MODEL.append(model)
    _POOL.update(pool)


def test_tasks_of_one_kind_are_one_computation(model: nn.Module, tasks: dict[str, TunedModel]) -> None:
    many = fxtune.multitask(model, {**tasks, "planes": _POOL["planes"]})
    calls: list[str] = []
    for name, branch in many.branches.named_children():
        branch.get_submodule("head").register_forward_hook(lambda *_, name=name: calls.append(name))
    many(**images())
    assert sorted(calls) in (["birds", "slim"], ["cars", "slim"], ["planes", "slim"])


@pytest.mark.parametrize("chosen", [None, ["birds", "slim", "cars"]])
def test_the_backbone_runs_once(model: nn.Module, tasks: dict[str, TunedModel], chosen: list[str] | None) -> None:
    many = fxtune.multitask(model, tasks)
    calls: list[str] = []
    for name, module in many.trunk.named_modules():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    many(**images(), task=chosen)
    assert "blocks.1.mlp.fc2" in calls
    assert len(calls) == len(set(calls))


def test_custom_tuners_with_other_settings_are_not_one_kind(model: nn.Module) -> None:
    def twice(tuned: TunedModel, factor: float) -> TunedModel:
        for module in tuned.modules():
            if type(module).__name__ == "Mix":
                module.factor = factor
        return tuned

    tasks = {"a": twice(task(model, "vit", 1), 1.0), "b": twice(task(model, "vit", 2), 2.0)}
    many = fxtune.multitask(model, tasks)
    calls: list[str] = []
    for name, branch in many.branches.named_children():
        branch.get_submodule("head").register_forward_hook(lambda *_, name=name: calls.append(name))
    many(**images())
    assert sorted(calls) == ["a", "b"]


# Training


@pytest.mark.parametrize("chosen", [None, ["birds", "slim", "cars"]])
def test_gradients_flow_to_each_tasks_own_weights(
    model: nn.Module, tasks: dict[str, TunedModel], chosen: list[str] | None
) -> None:
    many = fxtune.multitask(model, tasks).train()
    assert not many.trunk.training and not many.trunk.get_submodule("pos_drop").training
    assert many.branches.birds.get_submodule("head_drop").training
    inputs = images()
    found = many(**inputs, task=chosen)
    total = sum(logits.square().sum() for logits in (found.values() if chosen is None else found))
    total.backward()
    for name, tuned in tasks.items():
        tuned.zero_grad()
        logits = tuned(**inputs)
        (logits if chosen is None else logits[chosen.index(name)]).square().sum().backward()
        expected = {name: weight.grad for name, weight in tuned.named_parameters() if weight.grad is not None}
        branch = many.branches.get_submodule(name)
        got = {name: weight.grad for name, weight in branch.named_parameters() if weight.grad is not None}
        assert got.keys() == expected.keys() == set(tuned.trainable)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert all(weight.grad is None for weight in many.trunk.parameters())


def test_what_trains_in_one_changes_in_the_other(model: nn.Module) -> None:
    tasks = {"a": task(model, "vit", 1), "b": task(model, "vit", 2)}
    many = fxtune.multitask(model, tasks)
    for _ in range(2):
        with torch.no_grad():
            before = many(**images())["b"]
            tasks["b"].get_parameter("head.weight").mul_(2)
            assert not torch.equal(many(**images())["b"], before)
            assert_gives_what_they_give(many, tasks, images())


# Ordinary


def test_it_holds_one_backbone(model: nn.Module, tasks: dict[str, TunedModel]) -> None:
    many = fxtune.multitask(model, tasks)
    count = sum(weight.numel() for weight in many.parameters())
    trained = sum(weight.numel() for tuned in tasks.values() for weight in tuned.parameters() if weight.requires_grad)
    head = sum(weight.numel() for weight in model.head.parameters())
    assert count == sum(weight.numel() for weight in model.parameters()) - head + trained
    assert sum(weight.numel() for weight in many.parameters() if weight.requires_grad) == trained


def test_moving_it_leaves_the_tuned_models_alone(model: nn.Module, tasks: dict[str, TunedModel]) -> None:
    many = fxtune.multitask(model, {name: tasks[name] for name in ("birds", "slim")}).double()
    many.add("cars", tasks["cars"])
    inputs = images()
    expected = {name: tuned(**inputs) for name, tuned in tasks.items()}
    found = many(inputs["x"].double())
    assert {weight.dtype for weight in many.parameters()} == {torch.float64}
    for name, logits in expected.items():
        assert logits.dtype is torch.float32
        torch.testing.assert_close(found[name].float(), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda many: pickle.loads(pickle.dumps(many))])
def test_copies_stand_alone(model: nn.Module, tasks: dict[str, TunedModel], copied: Any) -> None:
    many = fxtune.multitask(model, tasks)
    with torch.no_grad():
        many(**images())
    other = copied(many)
    assert_gives_what_they_give(other, tasks, images())
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    assert_gives_what_they_give(many, tasks, images())
    other.load_state_dict(many.state_dict())
    assert_gives_what_they_give(other, tasks, images())
    other.drop("cars")
    other.add("cars", tasks["cars"])
    assert_gives_what_they_give(other, {name: tasks[name] for name in ("birds", "slim", "cars")}, images())


def test_the_model_may_be_tuned_itself(tasks: dict[str, TunedModel]) -> None:
    assert_gives_what_they_give(fxtune.multitask(tasks["cars"], tasks), tasks, images())


# Bad input


def test_another_backbone_is_refused(model: nn.Module, tasks: dict[str, TunedModel]) -> None:
    other = task(build("vit", seed=5), "vit", 1)
    with pytest.raises(PlanError, match=r"`other` was tuned on another backbone(.|\n)*`patch_embed.proj.weight`"):
        fxtune.multitask(model, {**tasks, "other": other})
    many = fxtune.multitask(model, tasks)
    with pytest.raises(PlanError, match="another backbone"):
        many.add("other", other)
    assert_gives_what_they_give(many, tasks, images())
    with pytest.raises(PlanError, match="another backbone"):
        fxtune.multitask(build("vit", seed=5), tasks)


def test_the_same_weights_in_another_network_are_refused(model: nn.Module, tasks: dict[str, TunedModel]) -> None:
    other = copy.deepcopy(model)
    for block in other.blocks:
        block.attn.num_heads, block.attn.head_dim, block.attn.scale = 2, 16, 16**-0.5
    many = fxtune.multitask(model, tasks)
    with pytest.raises(PlanError, match="the same network"):
        many.add("other", task(other, "vit", 1))
    assert_gives_what_they_give(many, tasks, images())


def test_a_trunk_that_was_optimised_is_another(model: nn.Module, tasks: dict[str, TunedModel]) -> None:
    with pytest.raises(PlanError, match="the same model, with the same example_inputs, form and optimize"):
        fxtune.multitask(model, {**tasks, "fast": task(model, "vit", 1, optimize=True)})


@pytest.mark.parametrize(
    ("given_tasks", "error", "match"),
    [
        (lambda pool: {}, InputError, "no tasks"),
        (lambda pool: {"birds": "out/birds"}, CheckpointError, "(?s)no checkpoint.*out/birds"),
        (lambda pool: {"birds": nn.Linear(2, 2)}, InputError, "a Linear"),
        (lambda pool: {"birds": fxtune.apply(build("vit"), "lora")}, PlanError, "res_bypass"),
        (lambda pool: {"a.b": pool["birds"]}, InputError, "without dots"),
        (lambda pool: {"": pool["birds"]}, InputError, "without dots"),
        (lambda pool: {"train": pool["birds"]}, InputError, "cannot be the name"),
        (lambda pool: {3: pool["birds"]}, InputError, "cannot be the name"),
    ],
)
def test_bad_tasks(
    model: nn.Module, pool: dict[str, TunedModel], given_tasks: Any, error: type[FxtuneError], match: str
) -> None:
    with pytest.raises(error, match=match):
        fxtune.multitask(model, given_tasks(pool))


@pytest.mark.parametrize(
    "form",
    [list, torch.tensor, np.array, lambda some: list(map(np.int64, some)), lambda some: list(torch.tensor(some))],
)
def test_places_may_be_numbers_of_any_library(model: nn.Module, tasks: dict[str, TunedModel], form: Any) -> None:
    many = fxtune.multitask(model, tasks)
    named = many(**images(), task=[many.tasks[i] for i in (1, 0, 1)])
    for ours, theirs in zip(many(**images(), task=form([1, 0, 1])), named, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("chosen", "match"),
    [
        (["birds", "birds"], "2.*3 samples|for 3 samples"),
        ("birds", "one task for each sample"),
        (["birds", "birds", "car"], "did you mean 'cars'"),
        (["birds", "birds", 3], "no task 3"),
        (["birds", "birds", -1], "no task -1"),
        (["birds", "birds", True], "no task True"),
        (3, "one task for each sample"),
        (torch.tensor(1), "one task for each sample"),
        (torch.zeros(3, 1, dtype=torch.int64), r"no task \[0\]"),
    ],
)
def test_bad_choices(model: nn.Module, tasks: dict[str, TunedModel], chosen: Any, match: str) -> None:
    many = fxtune.multitask(model, tasks)
    with pytest.raises(InputError, match=match):
        many(**images(), task=chosen)


def test_bad_changes(model: nn.Module, tasks: dict[str, TunedModel]) -> None:
    many = fxtune.multitask(model, {"birds": tasks["birds"]})
    with pytest.raises(InputError, match="the only one"):
        many.drop("birds")
    with pytest.raises(InputError, match="did you mean 'birds'"):
        many.drop("bird")
    with pytest.raises(InputError, match="already"):
        many.add("birds", tasks["cars"])
    with pytest.raises(InputError, match="does not fit"):
        many(torch.randn(2, 3, 48, 48))
    assert_gives_what_they_give(many, {"birds": tasks["birds"]}, images())
