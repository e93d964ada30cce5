"""`apply` from end to end: weights, identity at the start, training, and Eq. 7 against hooks on the modules."""

from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxtune
from applying import rule, state, trainable, value
from effort import examples
from families import FAMILIES, build

# ---- Must show 3: weights ------------------------------------------------------------------------------------------


def meta(name: str, classes: int = 100) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name, num_classes=classes)
    return model


@pytest.mark.parametrize(
    ("name", "rules", "settings", "weights"),
    [
        ("vit_base_patch16_224", "single_prompt_ffn", {}, 169_060),
        ("vit_base_patch16_224", "dual_res", {}, 482_644),
        ("vit_base_patch16_224", "tri_res", {}, 676_300),
        ("resnet101", "single_adapter_block", {"scale": "channel"}, 920_494),
    ],
)
def test_published_weight_counts(name: str, rules: str, settings: dict[str, Any], weights: int) -> None:
    assert trainable(fxtune.apply(meta(name), rules=rules, **settings)) == weights


def adapters(width: int, dim: int, count: int) -> int:
    """Two adapters with a channel scale in each of `count` blocks (definitions, section 3)."""
    return count * 2 * (2 * width * dim + dim + width + width)


@settings(max_examples=examples(8, 50))
@given(dim=st.integers(5, 100), depth=st.integers(1, 4), data=st.data())
def test_weights_follow_the_formula(dim: int, depth: int, data: st.DataObject) -> None:
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=24, depth=depth, num_heads=3, num_classes=7
    )
    chosen = set(range(depth))
    conditions: dict[str, Any] = {}
    if data.draw(st.booleans(), label="first k blocks"):
        first = data.draw(st.integers(1, depth))
        conditions["blocks"], chosen = f"first {first}", set(range(first))
    if data.draw(st.booleans(), label="blocks dropped"):
        drop = data.draw(st.sets(st.sampled_from(sorted(chosen)), max_size=len(chosen) - 1))
        conditions["drop"], chosen = sorted(drop), chosen - drop
    tuned = fxtune.apply(model, "dual_res", dim=dim, **conditions)
    assert trainable(tuned) == adapters(24, dim, len(chosen)) + 24 * 7 + 7
    report = fxtune.inspect(model, "dual_res", dim=dim, **conditions).report
    assert report is not None and report.trainable == trainable(tuned)


# ---- Must show 4: identity, training, strip ------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_untrained_adapters_change_no_bit(name: str) -> None:
    model, inputs = build(name), FAMILIES[name].inputs(3)
    tuned = fxtune.apply(model, "tri_res").eval()
    with torch.no_grad():
        assert torch.equal(value(tuned(**inputs)), value(model(**inputs)))


@pytest.mark.parametrize("name", FAMILIES)
def test_thirty_steps_train_the_tuners_and_nothing_else(name: str) -> None:
    family, model = FAMILIES[name], build(name)
    before, flags = state(model), [(p.requires_grad) for p in model.parameters()]
    tuned = fxtune.apply(model, rule("tri_res", train=["tuners"]), seed=1).train()
    start = state(tuned)
    inputs = family.inputs(8)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = family.loss(tuned(**inputs), 8)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] <= 0.8 * losses[0], (losses[0], losses[-1])
    for key, tensor in tuned.state_dict().items():
        assert torch.equal(tensor, start[key]) == ("tuners" not in key.split(".")), key
    stripped = tuned.strip()
    assert stripped is model
    assert all(torch.equal(tensor, before[key]) for key, tensor in stripped.state_dict().items())
    assert list(stripped.state_dict()) == list(before)
    assert [p.requires_grad for p in stripped.parameters()] == flags
    assert not any(module.training for module in stripped.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_state_dict_keys(name: str) -> None:
    model = build(name)
    keys = list(fxtune.apply(model, "tri_res").state_dict())
    assert [key for key in keys if "tuners" not in key.split(".")] == list(model.state_dict())
    assert len(keys) > len(model.state_dict())


# ---- Eq. 7 against hooks on the original modules -------------------------------------------------------------------


def awaken(tuned: nn.Module, seed: int = 0) -> None:
    """Every tuner weight drawn anew, none of them zero."""
    made = torch.Generator().manual_seed(seed)
    for name, parameter in tuned.named_parameters():
        if "tuners" in name.split("."):
            parameter.data = torch.randn(parameter.shape, generator=made, dtype=torch.float64) * 0.3


def hooked(model: nn.Module, tuner_of: dict[str, nn.Module], reads_output: bool = False) -> nn.Module:
    """Eq. 7 written with hooks: the output of each named module, plus a tuner on what it was given."""
    for path, tuner in tuner_of.items():
        model.get_submodule(path).register_forward_hook(
            lambda module, args, output, tuner=tuner: output + tuner(output if reads_output else args[0])
        )
    return model


@pytest.mark.parametrize("rules", ["tri_res", "tri_res_prefix", "tri_res_prompt"])
def test_vit_equals_hooks(rules: str) -> None:
    model = build("vit").double()
    tuned = fxtune.apply(model, rules, dtype=torch.float64)
    awaken(tuned)
    tuners = {name: module for name, module in tuned.named_modules() if name.split(".")[-2:-1] == ["tuners"]}
    # Layer scale belongs to the operation, so the tuners of MHA and FFN join behind it.
    joins = {"mha": "ls1", "ffn": "ls2", "block": ""}
    reads = {"mha": "norm1", "ffn": "norm2", "block": ""}
    assert len(tuners) == 6
    read: dict[str, torch.Tensor] = {}
    for path, tuner in tuners.items():
        region, _, label = path.partition(".tuners.")
        kind = label.split("_")[0]
        source = f"{region}.{reads[kind]}".rstrip(".")
        target = f"{region}.{joins[kind]}".rstrip(".")
        if kind == "block":
            hooked(model, {target: tuner})
        else:
            model.get_submodule(source).register_forward_hook(
                lambda module, args, output, source=source: read.__setitem__(source, output)
            )
            model.get_submodule(target).register_forward_hook(
                lambda module, args, output, source=source, tuner=tuner: output + tuner(read[source])
            )
    x = FAMILIES["vit"].inputs(3)["x"].double()
    torch.testing.assert_close(tuned.eval()(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reads", ["input", "output"])
def test_resnet_blocks_equal_hooks(reads: str) -> None:
    model = build("resnet").double()
    rules = {"rules": [{"at": "block", "insert": "res_adapter", "reads": reads}]}
    tuned = fxtune.apply(model, rules, dtype=torch.float64)
    awaken(tuned)
    for path, module in tuned.named_modules():
        if path.endswith("tuners.block_res_adapter"):
            block = model.get_submodule(path.removesuffix(".tuners.block_res_adapter"))

            def join(block: nn.Module, args: Any, output: torch.Tensor, tuner: nn.Module = module) -> torch.Tensor:
                x = args[0]
                read = output if reads == "output" or x.shape != output.shape else x
                tokens = read.flatten(2).transpose(1, 2)
                return output + tuner(tokens).transpose(1, 2).reshape(output.shape)

            block.register_forward_hook(join)
    x = FAMILIES["resnet"].inputs(3)["x"].double()
    torch.testing.assert_close(tuned.eval()(x), model(x), rtol=1e-12, atol=1e-12)


# ---- Must show 5: in-place operations ------------------------------------------------------------------------------


class Overwriting(nn.Module):
    """A unit whose input is overwritten after the unit has read it."""

    def __init__(self, overwrite: Any) -> None:
        super().__init__()
        self.first, self.unit, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.overwrite = overwrite

    def forward(self, x: torch.Tensor, tuner: nn.Module | None = None) -> torch.Tensor:
        h = self.first(x)
        before = h.clone()
        y = torch.tanh(self.unit(h))
        if tuner is not None:
            y = y + tuner(before)
        self.overwrite(h)
        result: torch.Tensor = self.last(y * h)
        return result


OVERWRITES = {
    "relu_": lambda h: h.relu_(),
    "add_": lambda h: h.add_(1.0),
    "through a view": lambda h: h.view(-1, 6).mul_(2.0),
    "through a part": lambda h: h[..., :2].zero_(),
    "an in-place module": lambda h: nn.ReLU(inplace=True)(h),
}

UNIT = {"in": "h", "out": "y", "dataflow": "y = tanh(linear(h))\nz = mul(y, _)"}


@pytest.mark.parametrize("name", OVERWRITES)
def test_a_rule_over_an_in_place_operation(name: str) -> None:
    torch.manual_seed(0)
    # Frozen: overwriting what a trained linear map has read is an error in eager PyTorch, too.
    model = Overwriting(OVERWRITES[name]).double().requires_grad_(False)
    rules = {"patterns": {"unit": UNIT}, "rules": [{"at": "unit", "insert": "res_adapter", "expect": 1}]}
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    tuned = fxtune.apply(model, rules, example_inputs=(x.detach(),), dtype=torch.float64)
    awaken(tuned)
    (tuner,) = (module for path, module in tuned.named_modules() if path.endswith("tuners.unit_res_adapter"))
    ours, reference = tuned(x), model(x, tuner)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
    wanted = [x, *tuner.parameters()]
    for mine, theirs in zip(
        torch.autograd.grad(ours.square().sum(), wanted),
        torch.autograd.grad(reference.square().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


class Shared(nn.Module):
    """A unit whose output is a view of a value that is overwritten through it, and read elsewhere afterwards."""

    def __init__(self, copies: bool) -> None:
        super().__init__()
        self.linear, self.copies = nn.Linear(6, 6), copies

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.linear(x))
        part = h[..., :3]
        if self.copies:
            part = part.clone()
        return part.mul_(2.0).sum(-1, keepdim=True) * h


@pytest.mark.parametrize("copies", [False, True])
def test_an_output_that_shares_overwritten_memory_is_refused(copies: bool) -> None:
    part = {"in": "x", "out": "y", "dataflow": "y = part(tanh(linear(x)))"}
    whole = {"in": "x", "out": "y", "dataflow": "y = tanh(linear(x))"}
    x = torch.randn(2, 5, 6)
    model = Shared(copies).requires_grad_(False)
    for pattern, refused in ((part, not copies), (whole, False)):
        rules = {"patterns": {"unit": pattern}, "rules": [{"at": "unit", "insert": "res_adapter", "reads": "output"}]}
        if refused:
            with pytest.raises(fxtune.PlanError, match="shares memory"):
                fxtune.apply(model, rules, example_inputs=(x,))
        else:
            assert torch.equal(fxtune.apply(model, rules, example_inputs=(x,))(x), model(x))


# ---- Must show 6: a user's own pattern and tuner -------------------------------------------------------------------

MIXER = """
fxtune: 1
name: mixer
patterns:
  mixer_block:
    about: A block of an MLP-Mixer, tokens first and then channels.
    in: x
    out: y
    dataflow: |
      tokens = linear(activation(linear(norm(x))))
      a = add(x, tokens)
      y = add(a, ffn_core(norm(a)))
rules:
  - at: mixer_block
    insert: {test_shift: {start: 0.25}}
    expect: 3
"""


@fxtune.tuner("test_shift")
class Shift(nn.Module):
    """Adds a learned number to every channel."""

    def __init__(self, place: fxtune.Placement, *, start: float = 0.0) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.full((place.width,), start))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shift.expand_as(x)


def test_a_users_own_pattern_and_tuner(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = timm.models.mlp_mixer.MlpMixer(num_classes=5, img_size=32, patch_size=8, num_blocks=3, embed_dim=24).eval()
    with pytest.raises(fxtune.MatchError, match="no rule of tri_res"):
        fxtune.apply(model, rule("tri_res", rules=[{"at": "block", "insert": "res_adapter"}]))
    file = tmp_path / "mixer.yaml"
    file.write_text(MIXER)
    tuned = fxtune.apply(model, file).eval()
    assert len([name for name in tuned.state_dict() if name.endswith("tuners.mixer_block_test_shift.shift")]) == 3
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: output + 0.25)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(tuned(x), model(x))
