"""train() and eval() on tuned models: as on the original, but for statistics, which keep still."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import fxtune
from fxtune.tuned import TunedModel, structural_twin
from fxtune.tuned.ownership import place
from tuned_support import IMAGES, bert, resnet, same_state, snapshot, tuned_by_hand, tuned_copy, vit

FEATURES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Normalising(nn.Module):
    """Every way to keep statistics: torch's class, a functional call, instance norm, a buffer of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.functional = Functional()
        self.instance = nn.InstanceNorm2d(3, track_running_stats=True)
        self.counting = Counting()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.counting(self.instance(self.functional(self.mix(x)))))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("var", torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.batch_norm(x, self.mean, self.var, training=self.training)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return x * 2


STATISTICS = {
    "mix.1.running_mean",
    "mix.1.running_var",
    "mix.1.num_batches_tracked",
    "functional.mean",
    "functional.var",
    "instance.running_mean",
    "instance.running_var",
    "instance.num_batches_tracked",
}


def normalising(**settings: Any) -> TunedModel:
    torch.manual_seed(0)
    return tuned_by_hand(Normalising().eval(), (FEATURES,), ("mix",), **settings)


def test_frozen_statistics_keep_still_in_training() -> None:
    tuned = normalising()
    state, mine = snapshot(tuned.strip()), snapshot(tuned)
    tuned.train()
    assert tuned.training and tuned.mix.training and tuned.drop.training
    tuned(FEATURES).sum().backward()
    moved = {name for name, tensor in tuned.state_dict().items() if not torch.equal(tensor, mine[name])}
    assert moved == {"counting.calls"}  # the model's own counter counts, but not in the original's memory
    assert same_state(tuned.strip().state_dict(), state)


def test_frozen_batch_norm_computes_as_in_eval_mode_even_where_only_a_part_is_trained() -> None:
    tuned = normalising()
    tuned.drop.p = 0.0
    expected = tuned(FEATURES)
    mine = snapshot(tuned)
    tuned.mix.train()
    tuned.functional.train()
    tuned.instance.train()
    assert torch.equal(tuned(FEATURES), expected)
    assert all(torch.equal(tuned.state_dict()[name], mine[name]) for name in STATISTICS)


def test_tracked_statistics_move_as_in_the_model_and_only_there() -> None:
    tuned = normalising(batchnorm="track")
    model = tuned.strip()
    state = snapshot(model)
    reference = copy.deepcopy(model).train()
    with torch.no_grad():
        for name in tuned.trainable:
            tuned.get_parameter(name).zero_()
    torch.manual_seed(1)
    tuned.train()(FEATURES)
    torch.manual_seed(1)
    reference(FEATURES)
    moved = tuned.state_dict()
    for name in STATISTICS:
        assert torch.equal(moved[name], reference.state_dict()[name]), name
    assert not torch.equal(moved["mix.1.running_mean"], state["mix.1.running_mean"])
    assert same_state(model.state_dict(), state)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_real_batch_norms_are_found_without_their_classes(name: str) -> None:
    model = resnet(name)
    state = snapshot(model)
    tuned = tuned_by_hand(model, (IMAGES,), ())
    tuned.train()(IMAGES)
    assert same_state(model.state_dict(), state) and same_state(tuned.state_dict(), state)


def test_further_graphs_are_frozen_too() -> None:
    tuned = normalising()
    state = snapshot(tuned.strip())
    tuned.train()
    tuned(FEATURES[:1, :, :1, :1].expand(1, 3, 1, 2))
    tuned.prepare(FEATURES.double().float()[:, :, :1])
    for graph in tuned._fxtune.graphs["forward"]:
        assert graph.training and not graph.mix.get_submodule("1").training
    tuned(FEATURES[:, :, :1])
    assert same_state(tuned.strip().state_dict(), state)


def test_copies_are_frozen_too() -> None:
    tuned = copy.deepcopy(normalising()).train()
    state = snapshot(tuned.strip())
    tuned(FEATURES)
    assert same_state(tuned.strip().state_dict(), state)


def test_train_and_eval_follow_the_original() -> None:
    model = vit(drop_rate=0.5, proj_drop_rate=0.5)
    tuned = tuned_by_hand(model, (IMAGES,), ())
    for mode in (True, False, True):
        model.train(mode)
        tuned.train(mode)
        torch.manual_seed(3)
        expected = model(IMAGES)
        torch.manual_seed(3)
        assert torch.equal(tuned(IMAGES), expected)
        assert [m.training for m in tuned.modules()] == [mode] * len(list(tuned.modules()))


def test_the_mode_at_apply_is_the_originals() -> None:
    model = vit().train()
    model.blocks[0].eval()
    tuned = tuned_by_hand(model, (IMAGES,), ("blocks.0", "blocks.1"))
    assert tuned.training and not tuned.blocks[0].training and tuned.blocks[1].training
    assert not tuned.blocks[0].tuners.training and tuned.blocks[1].tuners.training
    assert model.training and not model.blocks[0].training


class Staying(nn.Module):
    """A model whose own train() keeps a part in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        self.out = nn.Linear(4, 4)

    def train(self, mode: bool = True) -> "Staying":
        super().train(mode)
        self.stem.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.stem(x))


def test_the_originals_own_train_decides() -> None:
    x = torch.randn(3, 4)
    tuned = tuned_by_hand(Staying().eval(), (x,), ("stem",))
    tuned.train()
    assert tuned.training and not tuned.stem.training and not tuned.stem.get_submodule("1").training
    assert torch.equal(tuned(x), tuned(x))


def test_frozen_statistics_are_shared_and_tracked_ones_private() -> None:
    frozen, tracked = normalising(), normalising(batchnorm="track")
    for tuned, shared in ((frozen, True), (tracked, False)):
        theirs = dict(tuned.strip().named_buffers())
        mine = dict(tuned.named_buffers())
        assert all((place(mine[name]) == place(theirs[name])) is shared for name in STATISTICS)


def test_a_twins_mode_is_its_own() -> None:
    tuned = tuned_copy("vit")
    tuned.train()
    assert not tuned.strip().training
    assert structural_twin(tuned.strip()).training is False


def test_a_mode_set_on_a_submodule_holds_for_every_signature() -> None:
    """A call without mask is captured when first seen; what was set on the tree before holds there, too."""
    model = bert(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    tuned = fxtune.apply(model, "single_adapter_ffn").train()
    tuned.bert.eval()
    tuned.dropout.eval()
    ids = torch.randint(1, 20, (2, 6))
    assert torch.equal(tuned(input_ids=ids).logits, tuned(input_ids=ids).logits)
    tuned.bert.train()
    assert not torch.equal(tuned(input_ids=ids).logits, tuned(input_ids=ids).logits)
