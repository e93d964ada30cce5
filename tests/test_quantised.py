"""Backbones whose weights torchao has quantised take tuners and train; what can't be done with them is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

import fxtune
from effort import DEEP
from families import FAMILIES, build
from fxtune.digests import digest_of
from fxtune.errors import CheckpointError, FxtuneError, InputError, PlanError, UnsupportedModelError
from fxtune.tuned import TunedModel
from fxtune.wrapped import is_wrapped, parts, same_numbers

CELLS = [
    *[("vit", rule) for rule in ("tri_res", "lora", "prefix", "ssf", "res_bypass")],
    *[("bert", rule) for rule in ("tri_res", "res_bypass")],
    ("convnext", "tri_res"),
]
MORE = [(family, rule) for family in ("bert", "unet") for rule in ("lora", "prefix")] if DEEP else []


def quantised(family: str = "vit", seed: int = 0, *, with_head: bool = False) -> nn.Module:
    """A family's model, all of its linear layers but the head quantised."""
    model, head = build(family, seed), FAMILIES[family].head

    def chosen(module: nn.Module, path: str) -> bool:
        return isinstance(module, nn.Linear) and (with_head or path != head)

    quantize_(model, Int8WeightOnlyConfig(), filter_fn=chosen)
    assert any(map(is_wrapped, model.parameters()))
    return model


def apply(model: nn.Module, family: str, rules: Any, **options: Any) -> TunedModel:
    return fxtune.apply(model, rules, seed=0, example_inputs=((), FAMILIES[family].inputs(2)), **options)


def images(batch: int = 2) -> Tensor:
    read: Tensor = FAMILIES["vit"].inputs(batch)["x"]
    return read


def first(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


def bits(model: nn.Module) -> dict[str, list[Tensor]]:
    """Copies of all that a model's weights consist of."""
    return {name: [part.clone() for part in parts(tensor)] for name, tensor in model.state_dict().items()}


def same_bits(one: dict[str, list[Tensor]], other: dict[str, list[Tensor]]) -> bool:
    return one.keys() == other.keys() and all(all(map(torch.equal, one[name], other[name])) for name in one)


def train(tuned: TunedModel, family: str, inputs: dict[str, Any], steps: int = 8) -> list[float]:
    """The losses of a few steps, in which nothing but what trains gets a gradient."""
    weights = [tuned.get_parameter(name) for name in tuned.trainable]
    optimizer, losses = torch.optim.AdamW(weights, lr=1e-2), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = FAMILIES[family].loss(tuned(**inputs), 2)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert {name for name, weight in tuned.named_parameters() if weight.grad is not None} == set(tuned.trainable)
    return losses


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "rule"), [*CELLS, *MORE])
def test_tuners_train_beside_quantised_weights(family: str, rule: str) -> None:
    model, inputs = quantised(family), FAMILIES[family].inputs(2)
    before, expected = bits(model), first(model(**inputs))
    tuned = apply(model, family, rule)
    if rule in ("tri_res", "lora"):  # they start as nothing
        assert torch.equal(first(tuned(**inputs)), expected)
    losses = train(tuned, family, inputs)
    assert losses[-1] < 0.9 * losses[0]
    assert same_bits(bits(model), before) and torch.equal(first(model(**inputs)), expected)
    own = [name for name in tuned.trainable if "tuners" not in name.split(".")]
    assert all(name.startswith(f"{FAMILIES[family].head}.") for name in own)


@pytest.mark.parametrize("family", ["vit", "bert", "convnext"])
def test_the_capture_computes_what_the_model_does(family: str) -> None:
    model = quantised(family)
    captured = fxtune.capture(model, ((), FAMILIES[family].inputs(2)))
    for batch in (2, 3):
        inputs = FAMILIES[family].inputs(batch)
        assert torch.equal(first(captured(**inputs)), first(model(**inputs)))


def test_quantised_weights_are_shared_not_copied() -> None:
    model = quantised()
    mine, theirs = (dict(m.named_parameters()) for m in (apply(model, "vit", "tri_res"), model))
    for name, weight in theirs.items():
        if is_wrapped(weight):
            assert weight is not mine[name]
            assert [part.data_ptr() for part in parts(weight)] == [part.data_ptr() for part in parts(mine[name])]


def test_a_quantised_head_gives_way_to_a_new_one() -> None:
    tuned = apply(quantised(with_head=True), "vit", "tri_res", num_classes=2)
    assert "head.weight" in tuned.trainable and not is_wrapped(tuned.get_parameter("head.weight"))
    losses = train(tuned, "vit", {"x": images()}, steps=20)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the int4 kernels are for GPUs")
def test_int4_on_a_gpu() -> None:
    """Beside the trunk: its kernel has no derivative, so nothing within it could train."""
    model = FAMILIES["vit"].build().to("cuda", torch.bfloat16)
    quantize_(model.blocks, Int4WeightOnlyConfig(group_size=32, int4_packing_format="tile_packed_to_4d"))
    before = bits(model)
    assert any(map(is_wrapped, model.parameters()))
    tuned = fxtune.apply(model, "res_bypass", seed=0, num_classes=2)
    read, labels = images().to("cuda", torch.bfloat16), torch.arange(2, device="cuda")
    weights = [tuned.get_parameter(name) for name in tuned.trainable]
    optimizer, losses = torch.optim.AdamW(weights, lr=1e-2), []
    for _ in range(8):
        optimizer.zero_grad()
        loss = F.cross_entropy(tuned(read).float(), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert same_bits(bits(model), before)


# ---- what else a tuned model does ------------------------------------------------------------------------------------


def test_tuners_are_saved_and_loaded(tmp_path: Path) -> None:
    """On the quantised model without a warning (here warnings are errors); on other weights with one."""
    tuned = apply(quantised(), "vit", "tri_res")
    train(tuned, "vit", {"x": images()}, steps=2)
    tuned.save(tmp_path)
    assert torch.equal(fxtune.load(quantised(), tmp_path)(images()), tuned(images()))
    for other in (quantised(seed=1), build("vit")):
        with pytest.warns(UserWarning, match="weights differ"):
            loaded = fxtune.load(other, tmp_path)
        mine, theirs = (dict(m.named_parameters()) for m in (tuned, loaded))
        assert all(torch.equal(mine[name], theirs[name]) for name in tuned.trainable)


def test_a_digest_is_of_what_is_inside() -> None:
    one, same, other = (quantised(seed=seed).blocks[0].mlp.fc1.weight for seed in (0, 0, 1))
    assert digest_of(one) == digest_of(same) != digest_of(other)
    assert same_numbers(one, same) and not same_numbers(one, other)
    plain = build("vit").blocks[0].mlp.fc1.weight
    assert digest_of(plain) != digest_of(one) and not same_numbers(plain, one)
    with torch.no_grad():
        parts(same)[1][0] *= 2
    assert digest_of(same) != digest_of(one) and not same_numbers(one, same)


def test_copies_moves_and_casts() -> None:
    model = quantised()
    tuned, expected = apply(model, "vit", "tri_res").eval(), model(images())
    twin = copy.deepcopy(tuned)
    assert torch.equal(twin(images()), expected)
    assert twin.to(torch.bfloat16)(images().bfloat16()).dtype is torch.bfloat16
    assert {weight.device.type for weight in tuned.to("meta").parameters()} == {"meta"}
    assert torch.equal(model(images()), expected)


def test_it_is_exported_and_compiled() -> None:
    tuned = apply(quantised(), "vit", "tri_res").eval()
    program = torch.export.export(tuned, (images(),))
    assert torch.equal(program.module()(images()), tuned(images()))
    torch._dynamo.reset()
    compiled = torch.compile(tuned, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(images()), tuned(images()))


def test_sets_and_tasks_share_the_quantised_weights() -> None:
    model = quantised()
    both = apply(model, "vit", "tri_res").add("other", apply(model, "vit", "lora"))
    assert torch.equal(both.use("other")(images()), model(images()))
    tasks = {name: fxtune.apply(model, "res_bypass", seed=seed) for seed, name in enumerate(("birds", "cars"))}
    many = fxtune.multitask(model, tasks).eval()
    for name, logits in many(images()).items():
        torch.testing.assert_close(logits, tasks[name].eval()(images()), rtol=1e-5, atol=1e-5)
    elsewhere = fxtune.apply(quantised(seed=1), "res_bypass")
    with pytest.raises(PlanError, match="another backbone"):
        many.add("dogs", elsewhere)


def test_other_quantised_values_become_its_own(tmp_path: Path) -> None:
    model, other = quantised(), quantised(seed=1)
    tuned, before = apply(model, "vit", "tri_res").eval(), bits(model)
    tuned.load_state_dict(other.state_dict(), strict=False)
    assert torch.equal(tuned(images()), other(images()))
    assert same_bits(bits(model), before)
    with pytest.raises(CheckpointError, match="other numbers than the original's"):
        tuned.save(tmp_path)


def test_what_only_concerns_biases_and_norms_is_merged() -> None:
    """The rest stays beside, and the report says why."""
    biases = apply(quantised(), "vit", "bitfit").eval()
    expected = biases(images())
    torch.testing.assert_close(biases.merge()(images()), expected)
    assert not [name for name in biases.state_dict() if "tuners" in name]
    scaled = apply(quantised(), "vit", "ssf").eval()
    expected = scaled(images())
    torch.testing.assert_close(scaled.merge()(images()), expected, rtol=1e-5, atol=1e-5)
    assert "`blocks.0.attn.qkv.weight` is quantised" in str(scaled.report())


# ---- what can't be done ----------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[type[FxtuneError], str, Callable[[nn.Module], Any]]] = {
    "training them": (PlanError, "can't train", lambda m: fxtune.apply(m, "full")),
    "training them by name": (
        PlanError,
        "`blocks.0.attn.qkv.weight`.* 1 more",
        lambda m: fxtune.apply(m, ["tri_res", {"train": ["*.qkv.weight"], "rules": []}]),
    ),
    "training all later": (PlanError, "can't train", lambda m: fxtune.apply(m, "tri_res").requires_grad_()),
    "lora in the weight": (PlanError, "qkv.weight", lambda m: fxtune.apply(m, "lora", form="original")),
    "bitfit in the weights": (PlanError, "qkv.weight", lambda m: fxtune.apply(m, "bitfit", form="original")),
    "a part of the weight": (PlanError, "optimize=True", lambda m: fxtune.apply(m, "tri_res", optimize=True)),
    "merging": (PlanError, "merge on the model in floating point", lambda m: fxtune.apply(m, "lora").merge()),
    "floating values for them": (
        InputError,
        "before you quantise it",
        lambda m: fxtune.apply(m, "tri_res").load_state_dict(build("vit", 1).state_dict(), strict=False),
    ),
    "memory": (UnsupportedModelError, "counting memory", lambda m: fxtune.memory(m, "tri_res")),
    "verify": (UnsupportedModelError, "verifying", lambda m: fxtune.verify(m, "prefix", examples=1)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_by_name(what: str) -> None:
    kind, told, act = REFUSED[what]
    model = quantised()
    before = bits(model)
    with pytest.raises(kind, match=f"(?s){told}") as caught:
        act(model)
    assert caught.value.fix and same_bits(bits(model), before)


class ReadsTheWeight(nn.Module):
    """Computes with a layer's weight itself, as models with split biases do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(x, self.fc.weight))


def test_a_model_that_reads_a_quantised_weight_itself_is_refused() -> None:
    model = ReadsTheWeight()
    quantize_(model.fc, Int8WeightOnlyConfig())
    rules = {"rules": [{"at": "linear", "where": {"path": "head"}, "insert": {"lora": {"rank": 2}}}]}
    with pytest.raises(PlanError, match=r"fc\.weight"):
        fxtune.apply(model, rules, example_inputs=(torch.randn(2, 16),), head="head")


def test_one_wrapper_within_another() -> None:
    """Sharded tensors wrap quantised ones, say."""
    from torch.testing._internal.two_tensor import TwoTensor

    inner = TwoTensor(torch.arange(4.0), torch.ones(4))
    outer, other = TwoTensor(inner, torch.zeros(4)), TwoTensor(torch.arange(4.0), torch.zeros(4))
    assert [part.tolist() for part in parts(outer)] == [[0.0, 1.0, 2.0, 3.0], [1.0] * 4, [0.0] * 4]
    assert same_numbers(outer, TwoTensor(inner.clone(), torch.zeros(4))) and not same_numbers(outer, other)
    assert digest_of(outer) != digest_of(other)
    assert not is_wrapped(other.a) and parts(other.a)[0] is other.a
