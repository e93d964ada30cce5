"""`fxtune.testing`: what it draws is what it says, and each of its assertions fails on what it is there to find."""

import subprocess
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils import _pytree as pytree

import fxtune
from effort import examples
from fxtune import cards, rules, tuners
from fxtune.testing import (
    FFNShape,
    SmallModel,
    assert_identity_at_init,
    assert_only_tuners_train,
    assert_strips_clean,
    ffn_shapes,
    held_bytes,
    peak_bytes,
    rule_files,
    saved_bytes,
    small_models,
    tensors,
)
from fxtune.testing.rules import setting_values
from fxtune.testing.state import values
from fxtune.tuned import TunedModel

ASSERTIONS = [assert_identity_at_init, assert_only_tuners_train, assert_strips_clean]
FFN = FFNShape(seed=1)
# Each example captures a model: shrinking one would take longer than reading it.
WITHOUT_SHRINKING = [Phase.explicit, Phase.reuse, Phase.generate]


def at_ffn(tuner: str, **settings: Any) -> dict[str, Any]:
    return {"train": ["tuners"], "rules": [{"at": "ffn", "insert": {tuner: settings}, "required": True}]}


def test_fxtune_itself_does_not_import_hypothesis() -> None:
    code = "import sys, fxtune, fxtune.cli; dir(fxtune); sys.exit('hypothesis' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- feed-forward networks -----------------------------------------------------------------------------------------


@given(ffn_shapes())
def test_feed_forward_networks_are_what_they_say(shape: FFNShape) -> None:
    model, (x,) = shape.build(torch.float64)
    weights = model.state_dict()

    def linear(name: str, rows: slice = slice(None)) -> torch.Tensor:
        bias = weights[f"{name}.bias"][rows] if shape.bias else 0.0
        return torch.einsum("bnd,hd->bnh", x, weights[f"{name}.weight"][rows]) + bias

    gates, values = linear("up", slice(shape.hidden)), linear("up", slice(-shape.hidden, None))
    if shape.gated and not shape.joined:
        gates = linear("gate")
    phi = {"gelu": nn.GELU(), "relu": nn.ReLU(), "silu": nn.SiLU()}[shape.activation]
    hidden = phi(gates) * values if shape.gated else phi(values)
    expected = x + hidden @ weights["down.weight"].T + (weights["down.bias"] if shape.bias else 0.0)
    assert x.shape == (shape.batch, shape.tokens, shape.width)
    torch.testing.assert_close(model(x), expected)
    assert all(weight.any() for weight in weights.values())


@settings(max_examples=examples(5, 50))
@given(ffn_shapes())
def test_feed_forward_networks_are_sites(shape: FFNShape) -> None:
    model, inputs = shape.build()
    assert len(fxtune.inspect(model, at_ffn("res_adapter"), example_inputs=inputs).sites["ffn"]) == 1


# ---- small models --------------------------------------------------------------------------------------------------


def test_small_models_are_of_every_family_and_run() -> None:
    seen: Counter[tuple[str, int]] = Counter()

    @settings(max_examples=examples(40, 500))
    @given(small_models())
    def runs(small: SmallModel) -> None:
        seen[small.card, small.number] += 1
        model, (args, kwargs) = small.build()
        assert (card := cards.find(model)) is not None and card.card == small.card
        assert not any(module.training for module in model.modules())
        assert all(float(p.detach().std()) > 0 for p in model.parameters() if p.numel() > 1)
        assert {t.shape[0] for t in pytree.tree_leaves((args, kwargs))} == {small.batch}
        with torch.no_grad():
            outputs = pytree.tree_leaves(model(*args, **kwargs))
        assert all(bool(t.isfinite().all()) for t in outputs if torch.is_tensor(t) and t.is_floating_point())

    runs()
    print(*seen.items(), sep="\n")
    families = {card for card, _ in seen}
    assert {"vit.timm", "convnext.timm", "resnet", "bert.transformers", "unet.diffusers"} <= families


@given(small_models())
@settings(max_examples=10, phases=[Phase.generate])
def test_a_printed_small_model_is_the_same_again(small: SmallModel) -> None:
    again = eval(repr(small), {"SmallModel": SmallModel})
    assert again == small
    (one, first), (two, second) = small.build(), again.build()
    assert all(map(torch.equal, pytree.tree_leaves(first), pytree.tree_leaves(second)))
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))


@given(small_models("vit"), small_models(["resnet", "timm"]))
@settings(max_examples=50)
def test_families_can_be_named(vit: SmallModel, other: SmallModel) -> None:
    assert vit.card in ("vit.timm", "vit.transformers") and other.card in ("resnet", "timm")


@pytest.mark.parametrize("name", ["vit.timm", "convnext.timm"])
def test_every_draw_is_drawn_and_shrinks_to_the_usual_member(name: str) -> None:
    quick = settings(phases=[Phase.generate, Phase.shrink], database=None, max_examples=500)
    (small, *_) = next(card for card in cards.shipped() if card.card == name).small
    for draw, choices in small.draws.items():
        for choice in choices[1:]:
            found = find(small_models(name), lambda s, want=(draw, choice): want in s.drawn.items(), settings=quick)
            assert found == SmallModel(name, 0, {draw: choice})


def test_unknown_families_are_refused() -> None:
    with pytest.raises(fxtune.FxtuneError, match=r"nearest: vit"):
        small_models("vit.tim")


@pytest.mark.parametrize("arguments", [{"n": {"draw": "dpeth"}}, {"n": [{"product": ["dpeth", 2]}]}])
def test_a_card_with_an_unknown_draw_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="dpeth"):
        cards.Small(call="a.b", arguments=arguments, draws={"depth": [1]})


# ---- rule files ----------------------------------------------------------------------------------------------------


@given(rule_files(blocks=3))
@settings(max_examples=examples(200, 2000))
def test_rule_files_are_valid(file: dict[str, Any]) -> None:
    """The language and the tuners take them; each choice of blocks leaves one of three."""
    (rule_set,) = tuners.resolve(rules.load(file))
    for rule in rule_set.rules:
        facts = {"stage": None, "width": 8, "path": "a", "variant": None}
        assert any(rule.where.refusal(block=block, **facts) is None for block in range(3))


def test_rule_files_have_every_tuner_site_and_setting() -> None:
    seen: set[tuple[str, ...]] = set()

    @settings(max_examples=examples(300, 2000))
    @given(rule_files())
    def collect(file: dict[str, Any]) -> None:
        for rule in file["rules"]:
            (name, given_settings), *_ = rule["insert"].items()
            seen.update([(name, rule["at"]), *((name, "setting", setting) for setting in given_settings)])

    collect()
    for name in (name for name in tuners.shipped() if not tuners.reads_mask(name)):  # those stand on a bypass
        assert {kind for kind in ("mha", "block") if (name, kind) in seen}, name
        assert all((name, "setting", setting) in seen for setting in tuners.settings(name)), name
    assert {("res_adapter", kind) for kind in ("mha", "ffn", "block", "conv_mixer")} <= seen


@pytest.mark.parametrize(
    ("annotation", "fits"),
    [
        (bool, lambda value: value in (True, False)),
        (int, lambda value: isinstance(value, int) and value >= 0),
        (float, lambda value: 0 < value < 2),
        (float | None, lambda value: value is None or 0 < value < 2),
    ],
)
def test_settings_are_drawn_from_their_annotations(annotation: Any, fits: Callable[[Any], bool]) -> None:
    drawing = setting_values(annotation)
    assert drawing is not None

    @given(drawing)
    def drawn(value: Any) -> None:
        assert fits(value)

    drawn()
    assert setting_values(str) is None


@settings(max_examples=examples(4, 40), phases=WITHOUT_SHRINKING)
@given(
    small_models(["vit", "bert", "convnext", "resnet"]),
    rule_files(inserts=["res_adapter"], at=["block"], fixed={"init": "zero", "activation": "gelu"}),
    st.sampled_from(ASSERTIONS),
)
def test_drawn_rules_on_drawn_models_hold(small: SmallModel, file: dict[str, Any], holds: Callable[..., None]) -> None:
    model, inputs = small.build()
    holds(model, file, inputs)


@settings(max_examples=examples(6, 60), phases=WITHOUT_SHRINKING)
@given(
    small_models("vit"),
    rule_files(
        # One that spans sites needs blocks with nothing between that mixes tokens or draws a drop path.
        inserts=[name for name in tuners.shipped() if not tuners.spans_sites(name)],
        at=["mha", "ffn", "block"],
        fixed={"activation": "gelu"},
    ),
)
def test_every_tuner_is_all_that_trains(small: SmallModel, file: dict[str, Any]) -> None:
    model, inputs = small.build()
    assert_only_tuners_train(model, file, inputs)


# ---- the assertions fail -------------------------------------------------------------------------------------------


class Broken(nn.Module):
    """A tuner that starts at zero, with a switch for each of its faults."""

    model: ClassVar[nn.Module]

    def __init__(self, place: fxtune.Placement, *, fault: str = "none") -> None:
        super().__init__()
        self.fault = fault
        self.gain = nn.Parameter(torch.zeros(place.width))
        if fault == "unused weight":
            self.unused = nn.Parameter(torch.ones(2))
        self.register_buffer("seen", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fault == "counts its tokens":
            self.seen.add_(x.shape[1])
        if self.fault == "changes the model":
            self.model.down.weight.data.mul_(1.5)
        if self.fault == "sets a flag":
            self.model.down.weight.requires_grad_(False)
        if self.fault == "sets a mode":
            self.model.down.train()
        if self.fault == "leaves a hook":
            self.model.register_forward_hook(lambda *_: None)
        if self.fault == "leaves an attribute":
            self.model.seen = 1
        return x * self.gain + (0.5 if self.fault == "starts away from zero" else 0.0)


fxtune.tuner("test_broken")(Broken)


@pytest.mark.parametrize("holds", ASSERTIONS)
def test_assertions_hold_on_a_sound_tuner(holds: Callable[..., None]) -> None:
    model, inputs = FFN.build()
    model.train()
    model.down.eval()
    holds(model, at_ffn("test_broken"), inputs)
    assert [name for name, module in model.named_modules() if not module.training] == ["down"]


@pytest.mark.parametrize(
    ("holds", "fault", "told"),
    [
        (
            assert_identity_at_init,
            "starts away from zero",
            r"output: differs.*\n.*test_broken: adds up to 5",
        ),
        (assert_only_tuners_train, "unused weight", r"test_broken\.unused: trains, and did not move"),
        (assert_only_tuners_train, "counts its tokens", r"test_broken\.seen: does not train, and moved"),
        (assert_only_tuners_train, "changes the model", r"(?s)down\.weight: does not.*weight: moved in the original"),
        (assert_strips_clean, "changes the model", r"down\.weight: its values"),
        (assert_strips_clean, "sets a flag", r"down\.weight: its requires_grad"),
        (assert_strips_clean, "sets a mode", "down: its mode"),
        (assert_strips_clean, "leaves a hook", "the model: its hooks"),
        (assert_strips_clean, "leaves an attribute", "the model: its attributes"),
    ],
)
def test_broken_tuners_are_found(holds: Callable[..., None], fault: str, told: str) -> None:
    model, inputs = FFN.build()
    Broken.model = model
    with pytest.raises(AssertionError, match=told):
        holds(model, at_ffn("test_broken", fault=fault), inputs)


def test_outputs_are_told_by_their_places() -> None:
    """Also those that a library has registered without names."""

    class Output(OrderedDict[str, Any]):
        pass

    pytree.register_pytree_node(
        Output, lambda o: (list(o.values()), list(o)), lambda v, k: Output(zip(k, v, strict=True))
    )
    x = torch.ones(1)
    assert list(values(x)) == [""]
    assert list(values((x, [x, None]))) == ["[0]", "[1]"]
    assert list(values(Output(sample=x, rest=(x, "text", {"y": x})))) == [".sample", ".rest[0]", ".rest[2]"]


def test_statistics_that_move_are_found() -> None:
    model, inputs = SmallModel("resnet", number=1, seed=3).build()
    assert_only_tuners_train(model, "single_adapter_block", inputs)
    with pytest.raises(AssertionError, match=r"running_mean: does not train, and moved"):
        assert_only_tuners_train(model, "single_adapter_block", inputs, batchnorm="track")


def test_a_copy_is_not_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = FFN.build()
    monkeypatch.setattr(TunedModel, "strip", lambda tuned: FFN.build()[0])
    with pytest.raises(AssertionError, match="did not give back the model"):
        assert_strips_clean(model, at_ffn("res_adapter"), inputs)


def test_training_in_place_does_not_strip_clean() -> None:
    model, inputs = FFN.build()
    with pytest.raises(AssertionError, match=r"down\.bias: its values"):
        assert_strips_clean(model, {**at_ffn("res_adapter"), "train": ["tuners", "down.bias"]}, inputs, inplace=True)


def test_saved_held_and_peak_bytes() -> None:
    model, x = nn.Sequential(nn.Linear(256, 512, bias=False), nn.Tanh()), torch.randn(64, 256)
    read, tanh = 4 * 64 * 256, 4 * 64 * 512
    assert saved_bytes(lambda: model(x).sum(), tensors(model)) == read + tanh
    assert saved_bytes(lambda: model(x).sum(), tensors(model, {"x": [x]})) == tanh
    assert held_bytes(lambda: model(x).sum()) == pytest.approx(tanh, abs=64)  # the inputs live anyway

    def step() -> None:
        model(x).sum().backward()

    weights = 4 * 256 * 512
    assert 2 * weights < peak_bytes(step, tensors(model)) < 2 * weights + 4 * tanh
