"""A tuned model passes for the original, and never runs it untuned."""

import inspect
import pathlib
import types
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from fxtune.errors import UntunedCallError
from fxtune.tuned import TunedModel
from tuned_support import IMAGES, LABELS, TEXT, same_state, snapshot, tuned_by_hand, tuned_copy


@pytest.fixture
def vit() -> TunedModel:
    return tuned_copy("vit")


@pytest.fixture
def bert() -> TunedModel:
    return tuned_copy("bert")


def features(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What the tuned ViT's forward_features must give, written out on the original."""
    x = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    for block in model.blocks:
        x = block(x) + 0.25 * x
    return model.norm(x)


# Class, signature, plain attributes


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_it_is_an_instance_of_the_originals_class(name: str) -> None:
    tuned = tuned_copy(name)
    original = tuned.strip()
    assert isinstance(tuned, type(original)) and isinstance(tuned, TunedModel)
    assert type(tuned).__name__ == type(original).__name__ and type(tuned).__module__ == type(original).__module__
    assert inspect.signature(tuned.forward) == inspect.signature(original.forward)
    assert inspect.signature(type(tuned).forward) == inspect.signature(type(original).forward)


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_every_plain_attribute_is_there(name: str) -> None:
    tuned = tuned_copy(name)
    original = tuned.strip()
    hidden = set(vars(nn.Module()))
    for key, value in vars(original).items():
        if key not in hidden:
            got = getattr(tuned, key)
            if isinstance(value, (bool, int, float, str, tuple, type(None), torch.dtype)):
                assert got == value, key


def test_properties_see_the_tuned_model(bert: TunedModel) -> None:
    assert bert.dtype is torch.float32 and bert.device.type == "cpu"
    assert bert.base_model is bert.bert and bert.config.num_labels == 3 and bert.main_input_name == "input_ids"
    bert.double()
    assert bert.dtype is torch.float64 and bert.strip().dtype is torch.float32
    assert bert.num_parameters() == sum(p.numel() for p in bert.parameters())


def test_an_attribute_that_nobody_has_is_an_attribute_error(vit: TunedModel) -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = vit.nonsense
    assert getattr(vit, "nonsense", None) is None and not hasattr(vit, "nonsense")


def test_its_names_are_listed(vit: TunedModel) -> None:
    assert {"forward_features", "num_classes", "graph_module", "blocks"} <= set(dir(vit))
    assert "TunedVisionTransformer" in repr(vit)


class Holding(nn.Module):
    """A model that keeps modules and methods in plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.out = nn.Linear(4, 4)
        self.plain = [self.block, {"out": (self.out,)}]
        self.sizes = [4, 4]
        self.bound = self.through_block
        self.inner = self.block.forward
        self.counter = 0

    def through_block(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x)

    def inside_block(self, x: torch.Tensor) -> torch.Tensor:
        self.counter += 1
        return self.out(self.block[0](x))

    def noisy(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x + torch.rand(3, 4))

    def around_forward(self, x: torch.Tensor) -> torch.Tensor:
        return self(x) + 1

    def swallowing(self, x: torch.Tensor) -> torch.Tensor:
        try:
            return self.block(x)
        except Exception:
            return x

    def lazily(self, x: torch.Tensor) -> Any:
        yield self.block(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.block(x))

    def replace_out(self) -> None:
        self.counter = 7
        self.out = nn.Linear(4, 2)

    def run_block(self) -> torch.Tensor:
        return self.block(torch.ones(2, 4))


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def holding() -> TunedModel:
    torch.manual_seed(0)
    return tuned_by_hand(Holding(), (X,), ("block",))


def tuned_block(model: nn.Module) -> torch.Tensor:
    return model.block(X) + 0.25 * X


def test_modules_in_plain_attributes_are_the_tuned_ones(holding: TunedModel) -> None:
    assert holding.plain[0] is holding.block and holding.plain[1]["out"][0] is holding.out
    assert torch.equal(holding.plain[0](X), tuned_block(holding.strip()))
    holding.sizes.append(5)
    assert holding.sizes == [4, 4, 5] and holding.strip().sizes == [4, 4]


def test_methods_in_plain_attributes_run_tuned_or_raise(holding: TunedModel) -> None:
    assert isinstance(holding.bound, types.MethodType)
    assert torch.equal(holding.bound(X), tuned_block(holding.strip()))
    with pytest.raises(UntunedCallError, match="untuned"):
        holding.inner(X)


# Methods that compute


def test_forward_features_runs_tuned(vit: TunedModel) -> None:
    expected = features(vit.strip(), IMAGES)
    assert torch.equal(vit.forward_features(IMAGES), expected)
    assert torch.equal(vit.forward_features(IMAGES[:2]), expected[:2])
    assert len(vit._fxtune.graphs["forward_features"]) == 1
    assert torch.equal(vit.forward_head(expected), vit(IMAGES))


def test_intermediate_features_run_tuned(vit: TunedModel) -> None:
    last, (first, second) = vit.forward_intermediates(IMAGES, output_fmt="NLC")
    model = vit.strip()
    assert torch.equal(last, features(model, IMAGES))
    x = model._pos_embed(model.patch_embed(IMAGES))
    assert torch.equal(first, (model.blocks[0](x) + 0.25 * x)[:, 1:])
    assert second.shape == first.shape


def test_a_method_trains_the_same_tuners(vit: TunedModel) -> None:
    vit.forward_features(IMAGES).square().sum().backward()
    assert all(vit.get_parameter(name).grad is not None for name in vit.trainable if "tuners" in name)


def test_a_method_that_calls_the_model_runs_tuned(holding: TunedModel) -> None:
    assert torch.equal(holding.around_forward(X), holding(X) + 1)
    assert "around_forward" not in holding._fxtune.graphs


def test_a_method_may_bring_the_model_new_inputs(holding: TunedModel) -> None:
    deeper = X.expand(2, 3, 4)
    assert torch.equal(holding.around_forward(deeper), holding(deeper) + 1)
    assert len(holding._fxtune.graphs["forward"]) == 2


def test_a_method_that_walks_around_a_rewritten_region_raises(holding: TunedModel) -> None:
    with pytest.raises(UntunedCallError, match="inside_block"):
        holding.inside_block(X)
    assert holding.counter == 0 and holding.strip().counter == 0


def test_a_method_cannot_swallow_the_watch(holding: TunedModel) -> None:
    assert torch.equal(holding.swallowing(X), tuned_block(holding.strip()))


def test_a_generator_is_watched_too(holding: TunedModel) -> None:
    with pytest.raises(UntunedCallError):
        list(holding.lazily(X))


def test_a_method_without_tensors_that_computes_raises(holding: TunedModel) -> None:
    with pytest.raises(UntunedCallError, match="block"):
        holding.run_block()


def test_a_method_that_changes_modules_raises_and_is_undone(holding: TunedModel, vit: TunedModel) -> None:
    out, before = holding.out, holding(X)
    with pytest.raises(UntunedCallError, match="num_classes="):
        holding.replace_out()
    assert holding.out is out and torch.equal(holding(X), before) and holding.counter == 0
    with pytest.raises(UntunedCallError):
        vit.reset_classifier(3)
    assert vit.num_classes == 5 and vit(IMAGES).shape == (3, 5)


def test_a_method_that_trips_draws_no_random_numbers(holding: TunedModel) -> None:
    torch.manual_seed(4)
    noise = torch.rand(3, 4)
    torch.manual_seed(4)
    model = holding.strip()
    assert torch.equal(holding.noisy(X), model.block(X + noise) + 0.25 * (X + noise))


def test_methods_that_look_things_up_work(vit: TunedModel, bert: TunedModel) -> None:
    assert vit.get_classifier() is vit.head
    assert "pos_embed" in vit.no_weight_decay()
    assert bert.get_input_embeddings() is bert.bert.embeddings.word_embeddings
    assert bert.can_generate() is False
    assert bert.get_input_embeddings() is not bert.strip().get_input_embeddings()


def test_generate_runs_tuned_or_raises() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, pad_token_id=0)).eval()
    words = torch.tensor([[5, 6, 7], [8, 9, 10]])
    tuned = tuned_by_hand(model, {"input_ids": words, "use_cache": False}, ("transformer.h.0",))
    with pytest.raises(UntunedCallError, match="generate"):
        tuned.generate(words, max_new_tokens=1, do_sample=False)  # its cache can't be captured
    expected = words
    for _ in range(3):
        expected = torch.cat([expected, tuned(expected, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(tuned.generate(words, max_new_tokens=3, do_sample=False, use_cache=False), expected)


class Child(Holding):
    def through_block(self, x: torch.Tensor) -> torch.Tensor:
        return super().through_block(x) * 2


def test_methods_that_call_super_work() -> None:
    tuned = tuned_by_hand(Child(), (X,), ("block",))
    assert torch.equal(tuned.through_block(X), tuned_block(tuned.strip()) * 2)


class TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))

    def forward(self, x: torch.Tensor, both: bool = False) -> torch.Tensor:
        return self.second(self.first(x)) if both else self.first(x)


def test_a_flag_that_brings_new_sites_is_refused() -> None:
    tuned = tuned_by_hand(TwoBranches(), (X,), ("first", "second"))
    with pytest.raises(Exception, match="second"):
        tuned(X, both=True)
    assert len(tuned._fxtune.graphs["forward"]) == 1


# transformers' Trainer


def test_trainer_trains_evaluates_and_checkpoints(bert: TunedModel, tmp_path: pathlib.Path) -> None:
    rows = [
        {"input_ids": TEXT["input_ids"][i % 3], "attention_mask": TEXT["attention_mask"][0], "labels": LABELS[i % 3]}
        for i in range(4)
    ]
    state, mine = snapshot(bert.strip()), snapshot(bert)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, learning_rate=0.1,
        disable_tqdm=True, save_steps=2, logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(bert, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert "eval_loss" in trainer.evaluate()  # the labels were found, by the class's signature
    moved = {name for name, tensor in bert.state_dict().items() if not torch.equal(tensor, mine[name])}
    assert moved == set(bert.trainable)
    assert same_state(bert.strip().state_dict(), state)
    assert (tmp_path / "checkpoint-2" / "model.safetensors").exists()
