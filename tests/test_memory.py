"""`memory`: what is told on fake tensors is what real ones take."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import families
import fxtune
from effort import DEEP, examples
from fxtune import cards
from fxtune.accounting.ledger import Ledger
from fxtune.accounting.report import units
from fxtune.testing import small_models
from memory_reference import Training, cuda_peak_bytes, held_bytes, peak_bytes, saved_bytes

SMALL = 1e-3
"""Of a whole: numbers of eight bytes that torch wraps as tensors are kept as well, and are no tensors on fakes."""


def trained(model: nn.Module, method: str, example_inputs: Any) -> nn.Module:
    """A real model that trains by a method: the library's own for full fine-tuning and linear probing."""
    if method not in ("full", "linear"):
        return fxtune.apply(model, method, example_inputs=example_inputs).train()
    head = cards.head(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(method == "full" or name.startswith(f"{head}."))
    model.train()
    for module in model.modules():
        if method == "linear" and isinstance(module, _BatchNorm):
            module.eval()
    return model


def family(name: str, method: str, batch: int) -> Training:
    inputs = families.FAMILIES[name].inputs(batch)
    return Training(trained(families.build(name), method, inputs), (), inputs)


def told(name: str, *args: Any, batch: int = 3, **kwargs: Any) -> fxtune.MemoryReport:
    model = families.build(name)
    return fxtune.memory(model, *args, batch=batch, example_inputs=families.FAMILIES[name].inputs(2), **kwargs)


# Exact: what is saved for the backward


TOKENS = st.tuples(small_models(["vit.timm", "bert.transformers"]), st.sampled_from(["dual_res", "prefix", "bitfit"]))
MAPS = st.tuples(small_models(["convnext.timm", "resnet"]), st.sampled_from(["single_adapter_block", "bitfit"]))


@settings(max_examples=examples(4, 60))
@given(st.one_of(TOKENS, MAPS), st.integers(1, 5))
def test_saved_bytes_are_exact(drawn: tuple[Any, str], batch: int) -> None:
    small, rules = drawn
    report = fxtune.memory(small.build()[0], rules, batch=batch)
    for usage in report.usages:
        model, _ = small.build()
        real = trained(model, usage.method, cards.example_inputs(model))
        args, kwargs = cards.example_inputs(model, batch=batch)
        assert usage.saved_for_backward == saved_bytes(Training(real, args, kwargs)), usage.method


@pytest.mark.parametrize("name", ["vit", "convnext", "resnet", "bert", *(["unet"] if DEEP else [])])
def test_saved_bytes_are_exact_and_the_peak_near_on_every_family(name: str) -> None:
    report = told(name, "tri_res")
    methods = {usage.method for usage in report.usages}
    assert methods | report.left_out.keys() == {"full", "linear", "lora", "tri_res"} and {"full", "tri_res"} <= methods
    for usage in report.usages:
        real = family(name, usage.method, 3)
        assert usage.saved_for_backward == saved_bytes(real), usage.method
        assert usage.peak == pytest.approx(peak_bytes(real), rel=0.1), usage.method


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "resnet18"])
def test_the_peak_is_near_at_the_usual_size(name: str) -> None:
    """Two images of 224 x 224: here oneDNN's copies weigh, and the optimizer's state does."""
    for usage in fxtune.memory(f"timm/{name}", batch=2).usages:
        model = timm.create_model(name)
        args, kwargs = cards.example_inputs(model, batch=2)
        real = Training(trained(model, usage.method, (args, kwargs)), args, kwargs)
        assert usage.saved_for_backward == saved_bytes(real), usage.method
        assert usage.peak == pytest.approx(peak_bytes(real), rel=0.1), usage.method


@pytest.mark.parametrize("name", ["vit", "bert", "resnet"])
def test_saved_bytes_are_exact_under_autocast(name: str) -> None:
    """The casts of weights count, too: they live for the backward's sake alone."""
    for usage in told(name, "dual_res" if name != "resnet" else "tri_res", autocast="bfloat16").usages:
        real = family(name, usage.method, 3)
        assert usage.saved_for_backward == saved_bytes(replace(real, autocast=torch.bfloat16)), usage.method


# Activation checkpointing


def test_checkpointed_blocks_save_what_enters_them() -> None:
    """What checkpoint keeps is no tensor that autograd packs, so the allocator is asked."""
    kept, checkpointed = (told("vit", "tri_res", checkpointing=on)["tri_res"] for on in (False, True))
    real = family("vit", "tri_res", 3)
    assert isinstance(real.model, fxtune.TunedModel)
    real.model.set_grad_checkpointing()
    held = held_bytes(real) - 2 * torch.get_rng_state().nbytes  # checkpoint keeps that, too, for each Block
    assert checkpointed.saved_for_backward == pytest.approx(held, abs=SMALL * held)
    assert held < kept.saved_for_backward / 3
    assert checkpointed.peak == pytest.approx(peak_bytes(real), rel=0.1) and checkpointed.peak < kept.peak


def test_a_tuned_model_is_told_as_it_is() -> None:
    inputs = families.FAMILIES["vit"].inputs(2)
    tuned = fxtune.apply(families.build("vit"), "tri_res", example_inputs=inputs)
    tuned.set_grad_checkpointing()
    before = {name: (tensor, tensor.clone()) for name, tensor in tuned.state_dict(keep_vars=True).items()}
    report = fxtune.memory(tuned, batch=3, example_inputs=inputs)
    assert [usage.method for usage in report.usages] == ["full", "linear", "lora", "as tuned"]
    assert replace(report["as tuned"], method="tri_res") == told("vit", "tri_res", checkpointing=True)["tri_res"]
    after = tuned.state_dict(keep_vars=True)
    assert all(after[name] is tensor and torch.equal(tensor, value) for name, (tensor, value) in before.items())
    assert not tuned.training and all(parameter.grad is None for parameter in tuned.parameters())


# Weights, gradients, optimizer


@pytest.mark.parametrize(
    ("optimizer", "copies", "numbers"), [("adamw", 2, 1), ("adam", 2, 1), ("momentum", 1, 0), ("sgd", 0, 0)]
)
def test_the_optimizer_keeps_so_many_copies_of_what_trains(optimizer: str, copies: int, numbers: int) -> None:
    model = families.build("vit")
    weights = sum(p.numel() for p in model.parameters())
    full = told("vit", optimizer=optimizer)["full"]
    assert (full.weights, full.trained, full.gradients) == (4 * weights, weights, 4 * weights)
    assert full.optimizer_state == 4 * (copies * weights + numbers * len([*model.parameters()]))


def test_an_optimizer_of_ones_own() -> None:
    report = told("vit", optimizer=lambda weights: torch.optim.RMSprop(weights, lr=0.1, foreach=False))
    assert report["full"].optimizer_state > report["full"].weights


def test_what_trains_is_counted_like_apply_does() -> None:
    inputs = families.FAMILIES["bert"].inputs(2)
    tuned = fxtune.apply(families.build("bert"), "dual_res", example_inputs=inputs, num_classes=7, dim=3)
    usage = told("bert", "dual_res", num_classes=7, dim=3)["dual_res"]
    assert usage.trained == sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    assert usage.weights == sum(t.nbytes for t in (*tuned.parameters(), *tuned.buffers()))


def test_tied_weights_count_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.second(self.first(x).relu()).relu())

    full = fxtune.memory(Tied(), example_inputs=torch.randn(2, 8), optimizer="sgd")["full"]
    assert full.weights == full.gradients == 4 * (64 + 8 + 8 + 16 + 2)


# The ledger


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.booleans()), max_size=30))
def test_the_ledger_follows_storages(program: list[tuple[int, int, bool]]) -> None:
    """Tensors of some size are put into five places, or views of what lies in another one, over whatever lay there."""
    places: list[torch.Tensor | None] = [None] * 5
    peak = 0

    def living() -> int:
        return sum(
            {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in places if t is not None}.values()
        )

    ledger = Ledger(torch.device("cpu"))
    with ledger:
        for size, place, view in program:
            other = places[size % 5] if view else None
            made = torch.empty(size) if other is None else other[: size // 2]
            peak = max(peak, living() + (made.nbytes if other is None else 0))
            places[place] = made
            del made, other
            assert ledger.bytes == living()
    assert ledger.peak == peak


# Nothing is changed, nothing allocated


def test_the_model_stays_as_it_was() -> None:
    model = families.build("resnet")
    model.fc.bias.requires_grad_(False)
    model.bn1.train()
    before, attributes = copy.deepcopy(model), {path: dict(vars(module)) for path, module in model.named_modules()}
    random = torch.get_rng_state()
    inputs = families.FAMILIES["resnet"].inputs(2)
    fxtune.memory(model, "tri_res", batch=4, example_inputs=inputs)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(vars(module) == attributes[path] for path, module in model.named_modules())
    for (name, tensor), (_, value) in zip(_tensors(model), _tensors(before), strict=True):
        assert torch.equal(tensor, value) and tensor.requires_grad == value.requires_grad and tensor.grad is None, name


def test_the_model_stays_as_it_was_when_the_rules_fail() -> None:
    model = families.build("resnet")
    weights = [*model.parameters()]
    with pytest.raises(fxtune.MatchError, match="prefix"):
        fxtune.memory(model, "prefix", example_inputs=families.FAMILIES["resnet"].inputs(2))
    assert all(now is then for now, then in zip(model.parameters(), weights, strict=True))
    assert not any(parameter.is_meta for parameter in model.parameters())


def _tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


HUGE = """
import resource
from timm.models.vision_transformer import VisionTransformer
import fxtune

def make(width=8192):
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=width, depth=2, num_heads=8, num_classes=10)

def used():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

if __name__ == "__main__":
    fxtune.memory("huge:small", "tri_res", batch=2)  # what imports and first calls take
    before = used()
    report = fxtune.memory("huge:make", "tri_res", batch=4096)
    print(report["full"].peak >> 20, used() - before >> 10)

def small():
    return make(64)
"""


def test_nothing_of_the_models_size_is_allocated(tmp_path: Path) -> None:
    """1.6 billion weights and a batch of 4,096: 98 GiB in training, under 100 MiB to tell that."""
    (tmp_path / "huge.py").write_text(HUGE, "utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(fxtune.__file__).parents[1])])}
    command = [sys.executable, str(tmp_path / "huge.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    peak, allocated = map(int, done.stdout.split())
    assert peak > 90_000 and allocated < 100


# The report


def test_the_report_prints_and_becomes_json() -> None:
    narrow = timm.models.ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 4, 4, 4), num_classes=4)  # its maps have rank 4
    report = fxtune.memory(narrow, batch=2, example_inputs=families.images(2, 64))
    text = str(report)
    assert "ConvNeXt" in text and "batch 2" in text and "lora left out" in text
    assert units(report["full"].peak) in text and f"{report['full'].trained:,}" in text
    data = json.loads(json.dumps(report.to_dict()))
    assert data["usages"][0] == vars(report["full"]) and data["batch"] == 2
    assert {"model", "device", "optimizer", "autocast", "checkpointing", "usages", "left_out"} <= data.keys()


@given(st.integers(0, 2**50))
def test_units_keep_three_digits(size: int) -> None:
    number, unit = units(size).replace(",", "").split()
    scale = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB"].index(unit)
    assert abs(float(number) * scale - size) <= 0.0051 * size
    assert len(units(size)) <= 8 or unit == "TiB"


def test_lora_is_told_once() -> None:
    assert [usage.method for usage in told("vit", "lora").usages] == ["full", "linear", "lora"]
    assert told("vit", "lora", rank=2)["lora"].trained < told("vit")["lora"].trained


# Bad input

ONE_IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"batch": 0}, fxtune.FxtuneError, ["batch=0", "at least 1"]),
        ({"batch": 2.0}, fxtune.FxtuneError, ["batch=2.0"]),
        ({"batch": True}, fxtune.FxtuneError, ["batch=True"]),
        ({"optimizer": "adamm"}, fxtune.FxtuneError, ["adamm", "nearest: adam"]),
        ({"device": "tpu"}, fxtune.FxtuneError, ["tpu", "'cpu' or 'cuda'"]),
        ({"device": "meta"}, fxtune.FxtuneError, ["meta"]),
        ({"autocast": "float32"}, fxtune.FxtuneError, ["float32", "bfloat16"]),
        ({"rules": "tri_ers"}, fxtune.RuleError, ["tri_res"]),
        ({"rules": {"train": ["tuners"]}}, fxtune.PlanError, ["Nothing trains"]),
        (
            {"example_inputs": torch.randn(1, 3, 32, 32), "batch": 4},
            fxtune.InputError,
            ["changed to 4", "(1, 3, 32, 32)"],
        ),
    ],
)
def test_bad_input_is_told_in_words(arguments: dict[str, Any], error: type[Exception], parts: list[str]) -> None:
    arguments = {"example_inputs": torch.randn(2, 3, 32, 32), **arguments}
    with pytest.raises(error) as caught:
        fxtune.memory(families.build("vit"), **arguments)
    assert all(part in str(caught.value) for part in (*parts, "do: ")), caught.value


def test_a_batch_that_is_fixed_already_may_be_named() -> None:
    named, unnamed = (fxtune.memory(families.build("vit"), example_inputs=ONE_IMAGE, batch=n) for n in (1, None))
    assert named.usages == unnamed.usages


def test_a_model_without_such_a_name() -> None:
    with pytest.raises(fxtune.FxtuneError, match="vit_base_patch16_224"):
        fxtune.memory("timm/vit_base_patch16_244")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_needs_a_gpu() -> None:
    with pytest.raises(fxtune.FxtuneError, match="CUDA"):
        told("vit", device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", ["vit_base_patch16_224", "resnet50", "convnext_tiny"])
def test_the_peak_is_near_on_a_gpu(name: str) -> None:
    for usage in fxtune.memory(f"timm/{name}", "dual_res" if "vit" in name else None, batch=32, device="cuda").usages:
        model = timm.create_model(name).cuda()
        args, kwargs = cards.example_inputs(model, batch=32)
        real = Training(trained(model, usage.method, (args, kwargs)), args, kwargs)
        assert usage.peak == pytest.approx(cuda_peak_bytes(real), rel=0.1), usage.method
