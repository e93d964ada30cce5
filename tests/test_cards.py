"""Model cards: every card knows its own small models, and what it says about them is true."""

import dataclasses
import types
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn
from torch.utils import _pytree as pytree

from fxtune import cards, resources, source
from fxtune.cards.attributes import holds, read
from fxtune.errors import InputError, SourceError
from small_models import build, small_models

SMALL = dict(small_models())

# Card and head of every small model, written down by hand.
EXPECTED = {
    "bert.transformers-0": ("classifier", "classifier", ("num_labels", "config.num_labels")),
    "bert.transformers-1": (None, None, ("config.num_labels",)),
    "bert.transformers-2": ("classifier", "classifier.out_proj", ("num_labels", "config.num_labels")),
    "bert.transformers-3": ("qa_outputs", "qa_outputs", ("config.num_labels",)),
    "bert.transformers-4": ("classifier", "classifier", ("num_labels", "config.num_labels")),
    "bert_choice.transformers-0": ("classifier", "classifier", ()),
    "convnext.timm-0": ("head.fc", "head.fc", ("num_classes",)),
    "convnext.timm-1": ("head.fc", "head.fc", ("num_classes",)),
    "image.transformers-0": ("classifier", "classifier", ("num_labels", "config.num_labels")),
    "resnet-0": ("fc", "fc", ("num_classes",)),
    "resnet-1": ("fc", "fc", ("num_classes",)),
    "text.transformers-0": ("score", "score", ("num_labels", "config.num_labels")),
    "text.transformers-1": (None, None, ("config.num_labels",)),
    "text.transformers-2": (None, None, ("config.num_labels",)),
    "text.transformers-3": ("score", "score", ("num_labels", "config.num_labels")),
    "text.transformers-4": (None, None, ("config.num_labels",)),
    "timm-0": (None, None, ("num_classes",)),
    "timm-1": (None, None, ("num_classes",)),
    "torchvision-0": (None, None, ()),
    "tresnet.timm-0": ("head.fc", "head.fc", ("num_classes",)),
    "unet.diffusers-0": (None, None, ()),
    "unet.diffusers-1": (None, None, ()),
    "unet.diffusers-2": (None, None, ()),
    "vit.timm-0": ("head", "head", ("num_classes",)),
    "vit.timm-1": (None, None, ("num_classes",)),
    "vit.transformers-0": ("classifier", "classifier", ("num_labels", "config.num_labels")),
    "vit.transformers-1": (None, None, ("config.num_labels",)),
}
# Cards that cannot know: a torchvision model, and one of timm's that was built without its configuration.
UNKNOWN_HEAD = {"timm-0", "torchvision-0"}


def floats(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if torch.is_tensor(leaf) and leaf.is_floating_point()]


def test_every_small_model_is_expected() -> None:
    assert set(SMALL) == set(EXPECTED)


@pytest.mark.parametrize("name", SMALL)
def test_small_model_is_known_and_runs_on_its_example_inputs(name: str) -> None:
    model = build(SMALL[name])
    card = cards.find(model)
    assert card is not None and name == f"{card.card}-{name.rpartition('-')[2]}"

    state = torch.get_rng_state()
    args, kwargs = cards.example_inputs(model)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was drawn from"
    again = cards.example_inputs(model)
    assert all(map(torch.equal, pytree.tree_leaves((args, kwargs)), pytree.tree_leaves(again)))

    tensors = pytree.tree_leaves((args, kwargs))
    assert {tensor.shape[0] for tensor in tensors} == {2}
    for tensor in tensors:
        assert tensor.ndim < 2 or tensor.shape[1] != tensor.shape[0], "batch and length must not look alike"
    with torch.no_grad():
        outputs = floats(model(*args, **kwargs))
    assert outputs and outputs[0].shape[0] == 2 and all(output.isfinite().all() for output in outputs)


@pytest.mark.parametrize("name", SMALL)
def test_head_and_class_counts(name: str) -> None:
    model = build(SMALL[name])
    head, logits, counts = EXPECTED[name]
    assert (cards.head(model), cards.logits(model), cards.class_counts(model)) == (head, logits, counts)
    assert cards.headless(model) == (head is None and name not in UNKNOWN_HEAD)
    if logits is None:
        return
    layer = model.get_submodule(logits)
    assert isinstance(layer, nn.Linear)
    # The class counts and the layer speak of one number, so a new head has to change them all.
    assert all(read(model, path) == layer.out_features for path in counts)


@pytest.mark.parametrize("name", ["vit.timm-0", "bert.transformers-0", "unet.diffusers-1"])
def test_inputs_follow_device_and_dtype(name: str) -> None:
    model = build(SMALL[name]).to(torch.bfloat16)
    args, kwargs = cards.example_inputs(model)
    assert {tensor.dtype for tensor in floats((args, kwargs))} <= {torch.bfloat16}
    with torch.no_grad():
        assert floats(model(*args, **kwargs))[0].dtype == torch.bfloat16
    args, kwargs = cards.example_inputs(model.to("meta"))
    assert all(tensor.is_meta for tensor in pytree.tree_leaves((args, kwargs)))


def test_other_values_and_batches() -> None:
    model = build(SMALL["bert.transformers-1"])
    (_, usual), (_, other) = cards.example_inputs(model), cards.example_inputs(model, seed=1)
    assert not torch.equal(usual["input_ids"], other["input_ids"])
    assert {tensor.shape for tensor in cards.example_inputs(model, batch=4)[1].values()} == {(4, 8)}


def test_sizes_are_the_model_s_own() -> None:
    (image,), _ = cards.example_inputs(build(SMALL["vit.timm-1"]))
    assert image.shape == (2, 1, 16, 32)
    _, inputs = cards.example_inputs(build(SMALL["bert.transformers-1"]))
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (2, 8)
    assert inputs["input_ids"].min() >= 0 and inputs["input_ids"].max() < 40
    assert inputs["attention_mask"].unique().tolist() == [0, 1] and inputs["attention_mask"][0].all()
    (sample, timestep), inputs = cards.example_inputs(build(SMALL["unet.diffusers-1"]))
    assert sample.shape == (2, 4, 16, 16) and timestep.shape == (2,) and not timestep.is_floating_point()
    assert inputs["encoder_hidden_states"].shape == (2, 7, 12)
    assert inputs["added_cond_kwargs"]["text_embeds"].shape == (2, 68 - 6 * 8)


def test_headless_once_the_head_is_taken_off() -> None:
    model = build(SMALL["vit.timm-0"])
    model.head = nn.Identity()
    assert cards.head(model) is None and cards.headless(model)


def test_a_subclass_has_its_base_s_card_and_a_namesake_has_none() -> None:
    model = build(SMALL["vit.timm-0"])
    original = type(model)
    model.__class__ = type("Mine", (original,), {"__module__": "mine"})
    card = cards.find(model)
    assert card is not None and card.card == "vit.timm"
    namesake = type(original.__name__, (nn.Module,), {"__module__": "mine"})()
    assert cards.find(namesake) is None
    assert cards.head(namesake) is None and not cards.headless(namesake) and cards.class_counts(namesake) == ()


def test_an_unknown_model_is_told_what_to_pass() -> None:
    class Unknown(nn.Module):
        def forward(self, left: torch.Tensor, right: torch.Tensor, flag: bool = False) -> torch.Tensor:
            return left + right

    with pytest.raises(InputError, match="No example inputs are known") as raised:
        cards.example_inputs(Unknown())
    assert "Unknown" in str(raised.value.found)
    assert "example_inputs=" in str(raised.value.fix) and '"left"' in str(raised.value.fix)
    assert '"right"' in str(raised.value.fix) and '"flag"' not in str(raised.value.fix)


def test_a_missing_size_is_named() -> None:
    model = build(SMALL["bert.transformers-1"])
    model.config = types.SimpleNamespace(vocab_size=None)
    with pytest.raises(InputError, match="'vocab'") as raised:
        cards.example_inputs(model)
    assert "config.vocab_size" in str(raised.value.found)


def test_card_files_are_named_after_their_cards() -> None:
    files = sorted(resources.models_dir().glob("*.yaml"))
    assert [file.stem for file in files] == [card.card for card in cards.shipped()]


VALID = """
fxtune: 1
card: mine
about: A card.
recognise: {classes: ["mine.*"]}
sizes: {batch: 2}
inputs:
  - {name: x, values: normal, shape: [batch, 3]}
"""


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("shape: [batch, 3]", "shape: [bach, 3]", "bach"),
        ("values: normal", "values: integers", "below"),
        ("values: normal", "values: normal, below: 3", "below"),
        ("values: normal", "values: random", "mask"),
        ("fxtune: 1", "fxtune: 2", "1"),
        ("about:", "abuot:", "nearest: 'about'"),
        ("name: x", "name: 'x y'", "pattern"),
    ],
)
def test_a_broken_card_is_refused_with_its_place(old: str, new: str, complaint: str) -> None:
    assert source.parse(VALID, "mine.yaml").validate(cards.Card).card == "mine"
    with pytest.raises(SourceError, match=r"mine\.yaml:\d+:\d+") as raised:
        source.parse(VALID.replace(old, new), "mine.yaml").validate(cards.Card)
    assert complaint in str(raised.value)


def test_two_cards_for_one_class_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        text = VALID.replace("card: mine", f"card: {name}").replace("mine.*", "*.test_cards.*")
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(resources, "models_dir", lambda: tmp_path)
    cards.shipped.cache_clear()
    try:
        Twice = type("Twice", (nn.Module,), {"__module__": "x.test_cards"})
        with pytest.raises(SourceError, match="one and two"):
            cards.find(Twice())
    finally:
        cards.shipped.cache_clear()


@dataclasses.dataclass
class Box:
    """Something with attributes."""

    content: Any


def nested() -> st.SearchStrategy[tuple[Any, list[str], int]]:
    """A value, wrapped at random in boxes, dicts, lists and tuples; the path to it; and the value."""

    def wrap(inner: tuple[Any, list[str], int]) -> st.SearchStrategy[tuple[Any, list[str], int]]:
        value, path, leaf = inner
        return st.one_of(
            st.just((Box(value), ["content", *path], leaf)),
            st.sampled_from(["a", "b_2"]).map(lambda key: ({key: value, "other": 0}, [key, *path], leaf)),
            st.integers(0, 2).map(lambda i: ([*[None] * i, value], [str(i), *path], leaf)),
            st.integers(0, 2).map(lambda i: ((*[None] * i, value), [str(i), *path], leaf)),
        )

    return st.recursive(st.integers(1, 9).map(lambda leaf: (leaf, [], leaf)), lambda s: s.flatmap(wrap), max_leaves=5)


@given(nested())
def test_read_follows_a_path(case: tuple[Any, list[str], int]) -> None:
    value, path, leaf = case
    model = Box(value)
    assert read(model, ".".join(["content", *path])) == leaf
    assert read(model, ".".join(["content", *path, "nothing"])) is None
    assert read(model, ".".join(["content", *path[:-1], "7"])) is None


def test_read_fills_in_the_text_at_a_path() -> None:
    model = Box({"where": "content.deep", "deep": 3, "not_text": 4, "empty": ""})
    assert read(model, "{content.where}") == 3
    assert read(model, "{content.not_text}") is None
    assert read(model, "{content.empty}.deep") is None
    assert read(model, "{content.missing}.deep") is None


@pytest.mark.parametrize(
    ("value", "wanted", "fits"),
    [("text_time", "text*", True), ("image", "text*", False), (None, "*", False), (7, "*", True), (True, True, True)],
)
def test_holds(value: object, wanted: object, fits: bool) -> None:
    assert holds(Box(value), {"content": wanted}) is fits
