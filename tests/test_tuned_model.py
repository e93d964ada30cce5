"""TunedModel: what it computes, whose weights it holds, how it is copied, moved, trained and stripped."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from fxtune.errors import InputError, PlanError, UnsupportedModelError, UntunedCallError
from fxtune.tracing import Region
from fxtune.tuned import TunedModel, observed_capture
from fxtune.tuned.ownership import place, tensors
from tuned_support import (
    BLOCKS,
    HEAD,
    IMAGES,
    LABELS,
    LAYERS,
    TEXT,
    flags,
    masked_lm,
    resnet,
    same_state,
    snapshot,
    tuned_by_hand,
    tuned_copy,
    vit,
)


def by_hand(model: nn.Module, images: torch.Tensor, weight: float = 0.25) -> torch.Tensor:
    """The tuned ViT, written out: each block's output plus a fraction of its input."""
    x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    for block in model.blocks:
        x = block(x) + weight * x
    return model.forward_head(model.norm(x))


@pytest.fixture
def tuned() -> TunedModel:
    return tuned_copy("vit")


@pytest.fixture
def model(tuned: TunedModel) -> nn.Module:
    return tuned.strip()


def step(tuned: nn.Module, loss: torch.Tensor) -> None:
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.1)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


# What it computes, and its names


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_it_computes_what_the_rewrite_says(model: nn.Module, tuned: TunedModel, batch: int) -> None:
    images = torch.randn(batch, 3, 32, 32)
    assert torch.equal(tuned(images), by_hand(model, images))
    assert not torch.equal(tuned(images), model(images))


def test_state_dict_has_the_originals_keys_in_order_and_the_tuners(model: nn.Module, tuned: TunedModel) -> None:
    keys = list(tuned.state_dict())
    assert [key for key in keys if "tuners" not in key.split(".")] == list(model.state_dict())
    added = [key for key in keys if "tuners" in key.split(".")]
    assert added == [f"blocks.{i}.tuners.beside.{name}" for i in range(2) for name in ("weight", "bias")]


def test_the_submodules_are_the_graphs_and_hooks_on_them_run() -> None:
    tuned = tuned_by_hand(vit(), (IMAGES,), BLOCKS)
    assert isinstance(tuned.graph_module, Region) and tuned.blocks is tuned.graph_module.blocks
    assert isinstance(tuned.blocks[0], Region) and len(tuned.blocks) == 2 and tuned.blocks[1] is list(tuned.blocks)[1]
    seen = []
    tuned.blocks[1].register_forward_hook(lambda *_: seen.append("block"))
    tuned.register_forward_hook(lambda *_: seen.append("model"))
    tuned(IMAGES)
    assert seen == ["block", "model"]


def test_exactly_what_was_asked_for_trains(model: nn.Module, tuned: TunedModel) -> None:
    tuners = [name for name in tuned.state_dict() if "tuners" in name.split(".")]
    assert sorted(tuned.trainable) == sorted([*tuners, *HEAD])


def test_training_a_name_that_does_not_exist_is_refused(model: nn.Module) -> None:
    with pytest.raises(PlanError, match=r"hed\.weight"):
        tuned_by_hand(model, (IMAGES,), BLOCKS, trains=("hed.weight",))


# Ownership


def test_frozen_weights_are_shared_and_trained_ones_private(model: nn.Module, tuned: TunedModel) -> None:
    originals = dict(tensors(model))
    for name, tensor in tensors(tuned):
        if name in originals:
            assert (place(tensor) == place(originals[name])) == (name not in HEAD), name


def test_training_moves_what_trains_and_strip_gives_the_original(model: nn.Module, tuned: TunedModel) -> None:
    before, state, mine = flags(model), snapshot(model), snapshot(tuned)
    tuned.train()
    for _ in range(3):
        step(tuned, nn.functional.cross_entropy(tuned(IMAGES), LABELS))
    moved = [name for name, tensor in tuned.state_dict().items() if not torch.equal(tensor, mine[name])]
    assert sorted(moved) == sorted(tuned.trainable)
    assert tuned.strip() is model
    assert same_state(model.state_dict(), state) and flags(model) == before


def test_one_model_carries_several_tuned_ones(model: nn.Module) -> None:
    first, second = (tuned_by_hand(model, (IMAGES,), BLOCKS, trains=HEAD) for _ in range(2))
    expected = second(IMAGES)
    step(first, first(IMAGES).sum())
    assert torch.equal(second(IMAGES), expected)
    assert not torch.equal(first(IMAGES), expected)


def test_inplace_trains_the_originals_own_memory(model: nn.Module) -> None:
    before = flags(model)
    tuned = tuned_by_hand(model, (IMAGES,), BLOCKS, trains=HEAD, inplace=True)
    head = model.head.weight.clone()
    step(tuned, tuned(IMAGES).square().sum())
    assert torch.equal(tuned.head.weight, model.head.weight) and not torch.equal(model.head.weight, head)
    assert flags(model) == before


def test_tied_weights_train_as_one() -> None:
    model = masked_lm()
    tied = "bert.embeddings.word_embeddings.weight"
    tuned = tuned_by_hand(model, TEXT, LAYERS, trains=(tied,))
    assert tuned.cls.predictions.decoder.weight is tuned.get_parameter(tied)
    state = snapshot(model)
    step(tuned, tuned(**TEXT).logits.square().sum())
    assert same_state(model.state_dict(), state)
    assert not torch.equal(tuned.get_parameter(tied), state[tied])


def test_loading_other_values_leaves_the_original_alone(model: nn.Module, tuned: TunedModel) -> None:
    state, other = snapshot(model), {name: tensor + 1 for name, tensor in tuned.state_dict().items()}
    tuned.load_state_dict(other)
    assert same_state(tuned.state_dict(), other)
    assert same_state(model.state_dict(), state)


def test_loading_the_same_values_keeps_sharing(model: nn.Module, tuned: TunedModel) -> None:
    tuned.load_state_dict(snapshot(tuned))
    assert place(tuned.patch_embed.proj.weight) == place(model.patch_embed.proj.weight)


def test_a_state_dict_cannot_be_assigned(tuned: TunedModel) -> None:
    with pytest.raises(InputError, match="assign"):
        tuned.load_state_dict(tuned.state_dict(), assign=True)


def test_training_everything_leaves_the_original_alone(model: nn.Module, tuned: TunedModel) -> None:
    state = snapshot(model)
    tuned.requires_grad_(True)
    step(tuned, tuned(IMAGES).square().sum())
    assert same_state(model.state_dict(), state)
    assert not torch.equal(tuned.patch_embed.proj.weight, model.patch_embed.proj.weight)


# Copies, pickles, moves


def _saved(tuned: TunedModel) -> Any:
    file = io.BytesIO()
    torch.save(tuned, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda tuned: pickle.loads(pickle.dumps(tuned)), "torch.save": _saved}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_computes_the_same_and_shares_with_its_own_original(
    model: nn.Module, tuned: TunedModel, copied: Any
) -> None:
    tuned.set_grad_checkpointing()
    other = copied(tuned)
    assert torch.equal(other(IMAGES), tuned(IMAGES))
    assert other.trainable == tuned.trainable and other.is_gradient_checkpointing and len(other.blocks) == 2
    original = other.strip()
    assert original is not model and same_state(original.state_dict(), model.state_dict())
    theirs = dict(tensors(original))
    for name, tensor in tensors(other):
        if name in theirs:
            assert (place(tensor) == place(theirs[name])) == (name not in HEAD), name
    expected = tuned(IMAGES)
    step(other, other(IMAGES).square().sum())
    assert torch.equal(tuned(IMAGES), expected)
    assert other.forward_features(IMAGES).shape == (3, 17, 32)  # a copy captures further graphs too


def test_a_pickle_stores_shared_weights_once(model: nn.Module) -> None:
    tuned = tuned_by_hand(vit(embed_dim=192), (IMAGES,), BLOCKS)
    alone = sum(tensor.numel() * 4 for _, tensor in tensors(tuned.strip()))
    assert len(pickle.dumps(tuned)) < 1.5 * alone


def test_copies_keep_ties() -> None:
    tuned = tuned_copy("masked_lm")
    for copied in COPIES.values():
        other = copied(tuned)
        assert other.cls.predictions.decoder.weight is other.bert.embeddings.word_embeddings.weight


def test_a_new_dtype_is_the_tuned_models_alone(model: nn.Module, tuned: TunedModel) -> None:
    state = snapshot(model)
    tuned.to(torch.float64)
    assert {tensor.dtype for _, tensor in tensors(tuned)} == {torch.float64}
    assert same_state(model.state_dict(), state)
    expected = by_hand(copy.deepcopy(model).double(), IMAGES.double())
    assert torch.allclose(tuned(IMAGES.double()), expected, rtol=1e-12, atol=1e-12)


def test_another_device_is_the_tuned_models_alone() -> None:
    tuned = tuned_copy("masked_lm")  # two graphs
    tuned.to("meta")
    text = {name: tensor.to("meta") for name, tensor in TEXT.items()}
    assert all(tensor.is_meta for _, tensor in tensors(*tuned._fxtune.trees()))
    assert not any(tensor.is_meta for _, tensor in tensors(tuned.strip()))
    assert tuned(**text).logits.is_meta and tuned(**text, labels=text["input_ids"]).loss.is_meta
    assert tuned.cls.predictions.decoder.weight is tuned.bert.embeddings.word_embeddings.weight


def test_every_graph_moves_and_ties_hold() -> None:
    tuned = tuned_copy("masked_lm")
    tuned.double()
    assert tuned(**TEXT, labels=TEXT["input_ids"]).loss.dtype is torch.float64
    assert tuned.cls.predictions.decoder.weight is tuned.bert.embeddings.word_embeddings.weight


def test_ties_hold_where_torch_makes_new_parameters() -> None:
    tuned = tuned_copy("masked_lm")
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        tuned.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    assert tuned.cls.predictions.decoder.weight is tuned.bert.embeddings.word_embeddings.weight
    assert tuned(**TEXT, labels=TEXT["input_ids"]).loss.dtype is torch.float64


def test_data_parallel_is_refused(tuned: TunedModel) -> None:
    with pytest.raises(UnsupportedModelError, match="DistributedDataParallel"):
        nn.parallel.replicate(tuned, [torch.device("cpu")] * 2) if torch.cuda.is_available() else (
            tuned._replicate_for_data_parallel()
        )


# Several input signatures


def test_other_optional_inputs_are_captured_when_first_seen() -> None:
    tuned = tuned_copy("bert")
    model = tuned.strip()
    random = torch.get_rng_state()
    out = tuned(**TEXT, labels=LABELS)
    assert torch.equal(random, torch.get_rng_state())
    assert type(out) is type(model(**TEXT, labels=LABELS))
    assert torch.equal(out.logits, tuned(**TEXT).logits)
    assert torch.equal(out.loss, nn.functional.cross_entropy(out.logits, LABELS))


def test_further_graphs_share_regions_and_tuners() -> None:
    tuned = tuned_copy("bert")
    keys = list(tuned.state_dict())
    tuned.prepare(**TEXT, labels=LABELS)
    tuned.prepare(**TEXT, labels=LABELS)
    tuned.prepare(TEXT["input_ids"])
    first, labelled, plain = tuned._fxtune.graphs["forward"]
    assert labelled.bert is first.bert  # only the root differs
    assert plain.bert is not first.bert  # another mask runs through it
    assert plain.get_submodule(LAYERS[0]).tuners is first.get_submodule(LAYERS[0]).tuners
    assert list(tuned.state_dict()) == keys
    with torch.no_grad():
        for name in tuned.trainable:
            tuned.get_parameter(name).add_(1)
    assert torch.equal(tuned(TEXT["input_ids"]).logits, tuned(**TEXT).logits)  # all of the mask is ones


def test_hooks_run_in_every_graph() -> None:
    tuned = tuned_copy("bert")
    tuned.prepare(TEXT["input_ids"])
    calls = []
    tuned.bert.register_forward_hook(lambda *_: calls.append(1))
    tuned(**TEXT)
    tuned(TEXT["input_ids"])
    assert len(calls) == 2


def test_a_capture_that_fails_leaves_everything_as_it_was(model: nn.Module, tuned: TunedModel) -> None:
    before, mode = snapshot(tuned), [m.training for m in tuned.modules()]
    with pytest.raises(Exception, match=r"(?s)shape|size|dimension|channels|Expected"):
        tuned(torch.randn(2, 4, 32, 32))
    assert [m.training for m in tuned.modules()] == mode and same_state(tuned.state_dict(), before)
    assert len(tuned._fxtune.graphs["forward"]) == 1
    assert torch.equal(tuned(IMAGES), by_hand(model, IMAGES))


class Multiplying(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4))
        self.weight = nn.Parameter(torch.ones(4, 4) / 3)

    def forward(self, x: torch.Tensor, more: torch.Tensor | None = None) -> torch.Tensor:
        y = self.inner(x) @ self.weight
        return y if more is None else y + more + torch.tensor([1.0, 2.0, 3.0, 4.0])


CONTEXTS = {
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_a_capture_ignores_the_callers_contexts(context: Any) -> None:
    model, x = Multiplying(), torch.randn(3, 4)
    tuned = tuned_by_hand(model, (x,), ("inner",))
    with context():
        tuned.prepare(x, x)
    out = tuned(x, x)
    expected = (model.inner(x) + 0.25 * x) @ model.weight + x + torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert torch.equal(out, expected)
    out.sum().backward()
    assert all(tuned.get_parameter(name).grad is not None for name in tuned.trainable)


# Modules that the graph dissolves


class Attending(nn.Module):
    """Torch's attention is captured as operators, not as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Identity()
        self.norm = nn.LayerNorm(8)
        self.skipped = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.inside(x))


def test_a_hook_on_a_dissolved_module_works_or_raises() -> None:
    model = Attending()
    tuned = tuned_by_hand(model, (torch.randn(2, 3, 8),), ())
    for path in ("inside", "norm"):
        ran: list[str] = []
        module = tuned.get_submodule(path)
        try:
            module.register_forward_hook(lambda *_, ran=ran: ran.append("hook"))
        except UntunedCallError as error:
            assert path in str(error)
            continue
        tuned(torch.randn(2, 3, 8))
        assert ran == ["hook"], path
    tuned.skipped.register_forward_hook(lambda *_: None)  # never called by the original either
    model.inside.register_forward_hook(lambda *_: None)


def test_hooks_of_the_original_run_on_the_tuned_model_and_not_during_capture() -> None:
    model, seen = vit(), []
    for path in ("", "blocks.0", "blocks.0.norm1"):
        module = model.get_submodule(path)
        module.register_forward_hook(lambda module, args, out: seen.append(type(out)))
        module.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    x = model._pos_embed(model.patch_embed(IMAGES * 2))
    for block, factor in zip(model.blocks, (2, 1), strict=True):  # the hook doubles what the tuner reads, too
        x = block(x) + 0.25 * factor * x
    expected = model.forward_head(model.norm(x))
    seen.clear()
    tuned = tuned_by_hand(model, (IMAGES,), BLOCKS)
    assert seen == []
    got = tuned(IMAGES)
    assert seen == [torch.Tensor] * 3
    assert torch.equal(got, expected)
    other = copy.deepcopy(tuned)
    other.blocks[0].register_forward_hook(lambda *_: seen.append("new"))
    other(IMAGES)
    assert seen.count("new") == 1
    tuned(IMAGES)
    assert seen.count("new") == 1


def test_a_hook_that_would_never_run_stops_apply() -> None:
    model = Attending()
    model.inside.register_forward_hook(lambda *_: None)
    try:
        tuned = tuned_by_hand(model, (torch.randn(2, 3, 8),), ())
    except UnsupportedModelError as error:
        assert "inside" in str(error)
    else:
        assert any(child is tuned.inside for child in tuned.modules())


def test_capture_names_every_module_that_was_called() -> None:
    graph, called = observed_capture(Attending(), (torch.randn(2, 3, 8),))
    assert called == {"", "inside", "norm"}
    assert isinstance(graph, Region)


def test_a_resnet_works_too() -> None:
    model = resnet()
    tuned = tuned_by_hand(model, (IMAGES,), ("layer1.0",), head="fc")
    x = model.maxpool(model.act1(model.bn1(model.conv1(IMAGES))))
    first = model.layer1[0]
    x = first(x.clone()) + 0.25 * x
    for rest in (*model.layer1[1:], model.layer2, model.layer3, model.layer4):
        x = rest(x)
    assert torch.equal(tuned(IMAGES), model.forward_head(x))
