"""Several sets of tuners on one backbone: used in turn, or not at all."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxtune
from families import FAMILIES, build, tuned_on
from form_models import awake
from fxtune.tuned import TunedModel

INPUTS = FAMILIES["vit"].inputs(2)


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        (found,) = pytree.tree_leaves(model(**INPUTS))
    return found


Sets = tuple[nn.Module, TunedModel, dict[str, Tensor]]


@pytest.fixture
def sets() -> Sets:
    """Tuners of three kinds, one with another number of classes; and what each gives by itself."""
    model = awake(build("vit"))
    ones = {
        "default": tuned_on(model, "vit", "tri_res", 1),
        "lora": tuned_on(model, "vit", "lora", 2),
        "bypass": tuned_on(model, "vit", "res_bypass", 3, num_classes=7),
    }
    expected = {name: output(one) for name, one in ones.items()}
    tuned = ones["default"].add("lora", ones["lora"]).add("bypass", ones["bypass"])
    return model, tuned, expected


def test_each_set_gives_what_its_model_gave(sets: Sets) -> None:
    model, tuned, expected = sets
    assert tuned.sets == ("default", "lora", "bypass") and tuned.used == "default"
    for name in ("default", "bypass", "lora", "bypass", "default"):
        assert tuned.use(name) is tuned and tuned.used == name
        assert torch.equal(output(tuned), expected[name])
    assert tuned.strip() is model


def test_the_backbone_is_in_memory_once(sets: Sets) -> None:
    model, tuned, _ = sets
    original = {p.data_ptr() for p in model.parameters()}
    for name in tuned.sets:
        frozen = [p for p in tuned.use(name).parameters() if not p.requires_grad]
        assert {p.data_ptr() for p in frozen} <= original


def test_the_weights_are_those_of_the_set_in_use(sets: Sets) -> None:
    _, tuned, _ = sets
    names = {name: {key for key in tuned.use(name).state_dict() if "tuners" in key} for name in tuned.sets}
    assert all("lora" in key for key in names["lora"]) and not any("lora" in key for key in names["default"])
    assert tuned.use("bypass").head.out_features == 7 and tuned.use("lora").head.out_features == 4
    tuned.use("lora").train()
    tuned(**INPUTS).square().sum().backward()
    assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)
    assert tuned.use("default").training and all(p.grad is None for p in tuned.parameters())


def test_moves_copies_and_pickles_take_all_sets_along(sets: Sets) -> None:
    _, tuned, expected = sets
    tuned.use("lora")
    for other in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
        assert other.used == "lora"
        for name in other.sets:
            assert torch.equal(output(other.use(name)), expected[name])
    tuned.double()
    assert all({p.dtype for p in tuned.use(name).parameters()} == {torch.float64} for name in tuned.sets)


def test_a_merged_set_and_its_neighbours(sets: Sets) -> None:
    _, tuned, expected = sets
    tuned.use("lora").merge()
    assert torch.equal(output(tuned.use("default")), expected["default"])
    assert 0 < float((output(tuned.use("lora")) - expected["lora"]).abs().max()) < 1e-5
    assert not any("tuners" in name for name in tuned.state_dict())
    assert torch.equal(output(tuned.unmerge()), expected["lora"])


@pytest.mark.parametrize("merge", [False, True])
def test_disabled_the_backbone_computes_alone(sets: Sets, merge: bool) -> None:
    """With the head that a set has trained: the reference is the original with that head."""
    model, tuned, expected = sets
    for name in tuned.sets:
        tuned.use(name)
        alone = copy.deepcopy(model)
        alone.head = copy.deepcopy(nn.Linear(32, tuned.head.out_features))
        alone.head.load_state_dict({key: tuned.get_parameter(f"head.{key}") for key in ("weight", "bias")})
        if merge and name == "lora":
            tuned.merge()
        kept = output(tuned)
        with tuned.disabled():
            assert not any("tuners" in key for key in tuned.state_dict())
            assert torch.equal(output(tuned), output(alone))
        assert torch.equal(output(tuned), kept)
        assert merge or torch.equal(kept, expected[name])


def test_disabled_ends_with_an_error_too(sets: Sets) -> None:
    _, tuned, expected = sets
    with pytest.raises(KeyError), tuned.disabled():
        raise KeyError
    assert torch.equal(output(tuned), expected["default"])


@pytest.mark.parametrize("family", ["vit", "bert", "unet"])
def test_cast_tuners_are_merged_and_taken_off_as_others_are(family: str) -> None:
    """Their graphs are captured anew, with inputs of the dtype that the model has by now."""
    tuned = tuned_on(awake(build(family)), family, "lora", 1).double()
    inputs = {name: x.double() if x.is_floating_point() else x for name, x in FAMILIES[family].inputs(2).items()}

    def computed() -> Tensor:
        with torch.no_grad():
            return torch.cat([leaf.flatten() for leaf in pytree.tree_leaves(tuned(**inputs))])

    kept = computed()
    with tuned.disabled():
        assert not torch.allclose(computed(), kept)
    torch.testing.assert_close((tuned.merge(), computed())[1], kept, rtol=0, atol=1e-12 * float(kept.abs().max()))
    assert torch.equal((tuned.unmerge(), computed())[1], kept)


@pytest.mark.parametrize("merge", [False, True])
def test_what_is_off_is_neither_saved_nor_merged(sets: Sets, tmp_path: Path, merge: bool) -> None:
    """A good checkpoint would give way to one without tuners."""
    model, tuned, expected = sets
    tuned.use("lora").save(tmp_path)
    if merge:
        tuned.merge()
    kept = output(tuned)
    with tuned.disabled():
        for form in ("fxtune", "peft", "diffusers"):
            with pytest.raises(fxtune.CheckpointError, match="tuners are off"):
                tuned.save(tmp_path, format=form)
        for change in (tuned.merge, tuned.unmerge):
            with pytest.raises(fxtune.PlanError, match="tuners are off"):
                change()
        with tuned.disabled():
            off = output(tuned)
        assert torch.equal(output(tuned), off) and not torch.equal(off, kept)
    assert torch.equal(output(tuned), kept)
    assert torch.equal(output(fxtune.load(model, tmp_path).eval()), expected["lora"])
    assert merge == bool(tuned._fxtune.unmerged)
    with tuned.disabled():
        copied = copy.deepcopy(tuned)
    assert torch.equal(output(copied), off)
    copied.use("lora")
    if merge:
        copied.unmerge()
    assert torch.equal(output(copied), expected["lora"])


def test_what_has_trained_without_tuners_has_trained(sets: Sets) -> None:
    _, tuned, _ = sets
    with tuned.disabled():
        head = tuned.get_parameter("head.weight")
        with torch.no_grad():
            head.add_(1)
    assert tuned.get_parameter("head.weight") is head


def test_a_hook_runs_whatever_set_is_in_use(sets: Sets) -> None:
    _, tuned, _ = sets
    calls = []
    handle = tuned.register_forward_hook(lambda *_: calls.append("model"))
    tuned.blocks[0].register_forward_hook(lambda *_: calls.append("block"))
    for name in tuned.sets:
        output(tuned.use(name))
    assert calls == ["block", "model"] * 3
    handle.remove()
    output(tuned)
    assert calls == [*["block", "model"] * 3, "block"]


def test_refusals(sets: Sets) -> None:
    model, tuned, expected = sets
    with pytest.raises(fxtune.PlanError, match=r"no set of tuners called 'lorra'(?s:.*)use 'lora'"):
        tuned.use("lorra")
    with pytest.raises(fxtune.PlanError, match="called 'lora' already"):
        tuned.add("lora", tuned_on(model, "vit", "lora", 4))
    with pytest.raises(fxtune.PlanError, match="another model object"):
        tuned.add("other", tuned_on(build("vit"), "vit", "lora", 4))
    with pytest.raises(fxtune.PlanError, match="of several"):
        tuned_on(model, "vit", "lora", 4).add("many", tuned)
    assert tuned.sets == ("default", "lora", "bypass")
    assert torch.equal(output(tuned), expected["default"])
