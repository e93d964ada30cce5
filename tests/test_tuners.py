"""The tuners against formulas written in numpy, their weights against the published counts, and the registry."""

import math
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxtune
from fxtune import rules, tuners
from fxtune.errors import RuleError
from fxtune.testing import saved_bytes
from fxtune.tuners import Placement, registry

HEADS = st.sampled_from([1, 2, 3])
SCALES = ["none", "scalar", "channel", "gate"]
BUILT_IN = {"res_adapter": "dim", "res_prefix": "tokens", "res_prompt": "tokens"}


def weights(module):
    return {name: p.detach().double().numpy() for name, p in module.named_parameters()}


def count(module):
    return sum(p.numel() for p in module.parameters())


def tokens(draw_seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(draw_seed), dtype=torch.float64).to(dtype)


# ---- what they compute ---------------------------------------------------------------------------------------------


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def relu(x):
    return np.maximum(x, 0)


def attention(x, keys, values, heads):
    """Head by head and token by token."""
    out = np.zeros_like(x)
    size = x.shape[-1] // heads
    for b, n, h in np.ndindex(*x.shape[:2], heads):
        part = slice(h * size, (h + 1) * size)
        logits = keys[:, part] @ x[b, n, part] / math.sqrt(size)
        odds = np.exp(logits - logits.max())
        out[b, n, part] = odds / odds.sum() @ values[:, part]
    return out


def scaled(z, w, kind):
    if kind == "gate":
        gate = 1 / (1 + np.exp(-(z @ w["scale.map.weight"].T + w["scale.map.bias"])))
        return z * gate.mean(axis=1, keepdims=True)
    return z if kind == "none" else z * w["scale.weight"]


@given(
    st.sampled_from(sorted(BUILT_IN)), st.integers(1, 3), HEADS, st.integers(1, 4), st.sampled_from(SCALES), st.data()
)
def test_outputs_against_the_formulas(name, size, heads, head_dim, scale, data):
    seed = data.draw(st.integers(0, 2**32))
    settings: dict[str, Any] = {BUILT_IN[name]: size, "scale": scale}
    if name == "res_adapter":
        settings["activation"] = data.draw(st.sampled_from(["gelu", "relu"]))
    place = Placement(heads * head_dim, heads, "ffn")
    module = tuners.build(name, settings, place, seed=seed, dtype=torch.float64)
    for p in module.parameters():  # away from zeros and ones
        p.data = tokens(seed + p.numel(), *p.shape)
    x = tokens(seed, data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3)), place.width)
    w, a = weights(module), x.numpy()
    if name == "res_adapter":
        phi = {"gelu": gelu, "relu": relu}[settings["activation"]]
        branch = phi(a @ w["down.weight"].T + w["down.bias"]) @ w["up.weight"].T + w["up.bias"]
    elif name == "res_prefix":
        branch = attention(a, w["keys"], w["values"], heads)
    else:
        branch = attention(a, w["prompts"], w["prompts"], heads)
    expected = scaled(branch, w, scale)
    # Both sides are float64 sums of a few terms; only their order differs.
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-12, atol=1e-12)


@given(st.sampled_from(sorted(BUILT_IN)), st.sampled_from(["scalar", "channel", 0.5]), st.integers(1, 40), HEADS)
def test_a_factor_keeps_nothing_of_a_token_for_the_backward_pass(name, scale, length, heads):
    def per_token(kind):
        place = Placement(8 * heads, heads, "ffn")
        module = tuners.build(name, {BUILT_IN[name]: 3, "scale": kind}, place, seed=0)
        few, more = (torch.randn(2, n, place.width) for n in (length, 2 * length))
        return (saved_bytes(lambda: module(more)) - saved_bytes(lambda: module(few))) / length

    assert per_token(scale) == per_token("none") > 0


@given(
    st.sampled_from(sorted(BUILT_IN)), st.sampled_from(SCALES), st.integers(1, 50), HEADS, st.integers(1, 64), st.data()
)
def test_weight_counts(name, scale, size, heads, head_dim, data):
    width = heads * head_dim
    device = data.draw(st.sampled_from(["cpu", "meta"]))
    module = tuners.build(name, {BUILT_IN[name]: size, "scale": scale}, Placement(width, heads, "block"), device=device)
    own = {"res_adapter": 2 * width * size + size + width, "res_prefix": 2 * size * width, "res_prompt": size * width}
    assert count(module) == own[name] + {"none": 0, "scalar": 1, "channel": width, "gate": width + 1}[scale]
    assert {p.device.type for p in module.parameters()} == {device}
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in module.parameters())


# ---- how they start ------------------------------------------------------------------------------------------------

STARTS_AT_ZERO = [
    *(("res_adapter", {"scale": scale}) for scale in SCALES),
    *(("res_prefix", {"scale": scale}) for scale in SCALES),
    ("res_prompt", {"scale": "scalar"}),
    ("res_prompt", {"scale": "channel"}),
]


@given(
    st.sampled_from(STARTS_AT_ZERO),
    HEADS,
    st.integers(1, 40),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    st.integers(0, 2**32),
)
def test_an_untrained_tuner_adds_nothing(start, heads, head_dim, dtype, seed):
    name, settings = start
    module = tuners.build(name, settings, Placement(heads * head_dim, heads, "ffn"), seed=seed)
    x = tokens(seed, 2, 5, heads * head_dim, dtype=dtype) * 100
    added = module(x)
    assert added.dtype == dtype and added.shape == x.shape
    assert torch.equal(x + added, x)


@pytest.mark.parametrize(
    ("name", "settings"),
    [*STARTS_AT_ZERO, ("res_prompt", {}), ("res_adapter", {"init": "xavier"}), ("res_prefix", {"init": "xavier"})],
)
def test_every_weight_moves(name, settings):
    module = tuners.build(name, settings, Placement(6, 2, "ffn"), seed=0)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    x, goal = tokens(0, 2, 3, 6, dtype=torch.float32), tokens(1, 2, 3, 6, dtype=torch.float32)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(3):  # a weight behind one that starts at zero has no gradient at first
        optimiser.zero_grad()
        (module(x) - goal).square().sum().backward()
        optimiser.step()
    for key, value in module.state_dict().items():
        assert not torch.equal(value, before[key]), key


@given(st.sampled_from(sorted(BUILT_IN)), st.integers(2, 30), st.integers(2, 30))
def test_xavier_is_within_its_bound(name, width, size):
    settings = {BUILT_IN[name]: size, "init": "xavier", "scale": "channel"}
    w = weights(tuners.build(name, settings, Placement(width, 1, "ffn"), seed=0))
    bound = math.sqrt(6 / (width + size))
    matrices = [v for v in w.values() if v.ndim == 2]
    assert len(matrices) == (1 if name == "res_prompt" else 2)
    assert all(0 < np.abs(m).max() <= bound for m in matrices)
    for key in {"down.bias", "up.bias"} & set(w):
        assert 0 < np.abs(w[key]).max() < 1e-5
    assert set(w["scale.weight"]) == {0.0 if name == "res_prompt" else 1.0}


@given(st.sampled_from(sorted(BUILT_IN)), st.integers(0, 2**40), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_seed_draws_apart_from_the_global_generator(name, seed, dtype):
    place = Placement(8, 2, "ffn")
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = tuners.build(name, {}, place, seed=seed, dtype=dtype).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    again = tuners.build(name, {}, place, seed=seed).state_dict()
    other = tuners.build(name, {}, place, seed=seed + 1).state_dict()
    assert all(torch.equal(first[key], again[key].to(dtype)) for key in first)
    assert any(not torch.equal(other[key], again[key]) for key in other)


def test_a_default_device_does_not_change_the_draws():
    plain = tuners.build("res_prompt", {}, Placement(8, 2, "ffn"), seed=5)
    with torch.device("meta"):
        inside = tuners.build("res_prompt", {}, Placement(8, 2, "ffn"), seed=5)
    assert torch.equal(plain.prompts, inside.prompts)


@given(st.sampled_from(sorted(BUILT_IN)), st.sampled_from(SCALES), st.integers(0, 1000))
def test_beside_a_bfloat16_backbone_it_computes_in_float32(name, scale, seed):
    module = tuners.build(name, {"scale": scale, "init": "xavier"}, Placement(8, 2, "ffn"), seed=seed)
    x = tokens(seed, 2, 3, 8, dtype=torch.bfloat16).requires_grad_()
    added = module(x)
    assert torch.equal(added, module(x.float()).bfloat16())
    added.float().sum().backward()
    assert x.grad.dtype == torch.bfloat16
    assert {p.grad.dtype for p in module.parameters()} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(x).dtype == torch.bfloat16
        assert module(x.float()).dtype == torch.float32


# ---- published counts ----------------------------------------------------------------------------------------------

HEAD = 768 * 100 + 100


def trainable(name, widths, head, **overrides):
    """Weights of a network that has an MHA, an FFN and a Block of each of `widths`; block numbers as in `widths`."""
    (rule_set,) = tuners.resolve(rules.load(name), overrides)
    total = head
    for rule in rule_set.rules:
        for block, width in enumerate(widths):
            if rule.where.refusal(block=block, stage=None, width=width, path="", variant=None) is None:
                total += count(tuners.build(rule.tuner, rule.settings, Placement(width, 1, rule.at), device="meta"))
    return total


@pytest.mark.parametrize(
    ("name", "published"), [("single_prompt_ffn", 169_060), ("dual_res", 482_644), ("tri_res", 676_300)]
)
def test_published_weights_on_vit_b(name, published):
    assert trainable(name, [768] * 12, HEAD) == published


def test_published_weights_on_resnet_101():
    widths = [256] * 3 + [512] * 4 + [1024] * 23 + [2048] * 3
    assert trainable("single_adapter_block", widths, 2048 * 100 + 100, scale="channel") == 920_494


@given(st.integers(5, 100), st.integers(1, 12), st.sets(st.integers(0, 11), max_size=11))
def test_dual_res_as_the_formula_says(dim, k, dropped):
    one = 2 * (2 * 768 * dim + dim + 768 + 768)
    assert trainable("dual_res", [768] * 12, HEAD, dim=dim) == HEAD + 12 * one
    assert trainable("dual_res", [768] * 12, HEAD, dim=dim, blocks=f"first {k}") == HEAD + k * one
    assert trainable("dual_res", [768] * 12, HEAD, dim=dim, drop=tuple(dropped)) == HEAD + (12 - len(dropped)) * one


def test_every_shipped_rule_can_be_built():
    for rule_set in tuners.resolve(rules.shipped()):
        for rule in rule_set.rules:
            assert tuners.refusal(rule.tuner, rule.at) is None
            tuners.build(rule.tuner, rule.settings, Placement(16, 2, rule.at), device="meta")


# ---- settings, overrides, refusals ---------------------------------------------------------------------------------


def test_settings_are_the_keyword_parameters():
    found = tuners.settings("res_adapter")
    assert {name: default for name, (_, default) in found.items()} == {
        "dim": 10,
        "scale": "none",
        "init": "zero",
        "activation": "gelu",
        "dropout": 0.0,
    }
    assert get_args(found["scale"][0])[0] == Literal["none", "scalar", "channel", "gate"]


@pytest.mark.parametrize(
    ("name", "settings", "complaint"),
    [
        ("res_adapter", {"dims": 3}, "nearest: 'dim'"),
        ("res_adapter", {"dim": "3"}, "found '3'; expected a valid integer"),
        ("res_adapter", {"dim": True}, "expected a valid integer"),
        ("res_adapter", {"dim": 0}, "greater than or equal to 1"),
        ("res_adapter", {"scale": "chanel"}, "'none', 'scalar', 'channel' or 'gate'"),
        ("res_prompt", {"init": "zero"}, "`scale: scalar`"),
        ("res_adaptor", {}, "the closest names are res_adapter"),
        ("unheard_of", {}, "the tuners are bitfit, convpass, lora, res_adapter, res_prefix, res_prompt"),
    ],
)
def test_bad_settings_are_refused(name, settings, complaint):
    with pytest.raises(RuleError) as error:
        tuners.build(name, settings, Placement(8, 2, "ffn"))
    assert complaint in str(error.value)


def test_bad_settings_in_a_file_are_refused_in_their_place(tmp_path):
    path = tmp_path / "mine.yaml"
    head = "fxtune: 1\nname: mine\nrules:\n  - at: ffn\n"
    for line, column in [
        ("{res_adapter: {dim: ten}}", 33),
        ("{res_adapter: {dims: 10}}", 28),
        ("{res_adaptor: {}}", 14),
    ]:
        path.write_text(f"{head}    insert: {line}\n")
        with pytest.raises(RuleError) as error:
            tuners.resolve(rules.load(path))
        assert error.value.where == f"{path}:5:{column}"
    path.write_text(f"{head}    insert: res_adaptor\n")
    with pytest.raises(RuleError) as error:
        tuners.resolve(rules.load(path))
    assert error.value.where == f"{path}:5:13"


def test_an_override_goes_to_every_rule_that_knows_it():
    before = rules.load(["tri_res_prompt", "single_prompt_ffn"])
    tri, single = tuners.resolve(before, {"tokens": 3, "dim": 20, "drop": [2], "blocks": range(4)})
    assert [rule.settings for rule in tri.rules] == [
        {"dim": 20, "scale": "channel"},
        {"dim": 20, "scale": "channel"},
        {"tokens": 3},
    ]
    assert single.rules[0].settings == {"tokens": 3}
    assert {(*rule.where.blocks, *rule.where.drop) for rule in (*tri.rules, *single.rules)} == {(0, 1, 2, 3, 2)}
    # What was loaded stays as it was.
    assert before == rules.load(["tri_res_prompt", "single_prompt_ffn"])
    assert tuners.resolve(before) == before


@pytest.mark.parametrize(
    ("name", "override", "complaint"),
    [
        ("dual_res", {"dmi": 3}, "did you mean 'dim'?"),
        ("dual_res", {"tokens": 3}, "settings: activation, dim, dropout, init, scale"),
        ("dual_res", {"block": [3]}, "did you mean 'blocks'?"),
        ("dual_res", {"dim": 2.5}, "dim: found 2.5; expected a valid integer"),
        ("dual_res", {"blocks": 3}, "'first 3' or [3]"),
        ("single_prompt_ffn", {"init": "zero"}, "`scale: scalar`"),
        ({"train": ["head"]}, {"blocks": [3]}, "no rule"),
    ],
)
def test_bad_overrides_are_refused(name, override, complaint):
    with pytest.raises(RuleError) as error:
        tuners.resolve(rules.load(name), override)
    assert complaint in str(error.value)


IN_A_SOFTMAX = {"kv_heads": 2, "head_dim": 4, "width_in": 12}


def test_in_a_softmax_a_prefix_is_as_wide_as_the_keys_and_a_prompt_as_what_it_joins():
    place = Placement(16, 4, "mha", **IN_A_SOFTMAX)
    prefix, prompt = (tuners.build(name, {"tokens": 3}, place) for name in ("res_prefix", "res_prompt"))
    assert {name: tuple(p.shape) for name, p in prefix.named_parameters()} == {"keys": (3, 8), "values": (3, 8)}
    assert {name: tuple(p.shape) for name, p in prompt.named_parameters()} == {"prompts": (3, 12)}
    assert all(p.abs().min() > 0 for p in (*prefix.parameters(), *prompt.parameters()))


def test_in_a_softmax_zeros_are_no_start_and_a_scale_is_one():
    place = Placement(16, 4, "mha", **IN_A_SOFTMAX)
    for name in ("res_prefix", "res_prompt"):
        with pytest.raises(RuleError, match="scale: scalar"):
            tuners.build(name, {"init": "zero"}, place)
        assert tuners.build(name, {"scale": "scalar"}, place).scale.weight.item() == 0
    assert tuners.build("res_prefix", {"scale": "scalar"}, Placement(8, 2, "ffn")).scale.weight.item() == 1


@pytest.mark.parametrize("name", ["res_prefix", "res_prompt"])
def test_beside_an_operation_the_width_divides_into_the_heads(name):
    assert tuners.refusal(name, "ffn") is tuners.refusal(name, "mha") is None
    with pytest.raises(RuleError, match="width 8 and 3 heads"):
        tuners.build(name, {}, Placement(8, 3, "ffn"))


# ---- the registry --------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


class Shift(nn.Module):
    refuses = {"mha": "it has a bias"}  # noqa: RUF012 - as the documentation shows it

    def __init__(self, place: Placement, *, copy: float = 0.0, model_tags: list[int] = [1]) -> None:  # noqa: B006
        super().__init__()
        self.tags = model_tags
        self.shift = nn.Parameter(torch.full((place.width,), copy))

    def forward(self, x):
        return self.shift.expand_as(x)


def test_a_users_tuner_is_named_from_a_rule():
    assert tuners.tuner("shift")(Shift) is Shift
    (rule_set,) = tuners.resolve(rules.load({"rules": [{"at": "mixer", "insert": {"shift": {"copy": 2}}}]}))
    (rule,) = rule_set.rules
    module = tuners.build(rule.tuner, {**rule.settings, "model_tags": (1, 2)}, Placement(3, 1, "mixer"))
    assert isinstance(module, Shift)
    assert module.shift.tolist() == [2.0] * 3
    assert module.tags == [1, 2]
    assert tuners.refusal("shift", "mha") == "it has a bias"
    assert "shift" in tuners.names()
    (rule_set,) = tuners.resolve([rule_set], {"copy": 3.0})
    assert rule_set.rules[0].settings == {"copy": 3.0}


def test_a_definition_may_be_run_again():
    tuners.tuner("shift")(Shift)
    again = type("Shift", (Shift,), {"__module__": Shift.__module__, "__qualname__": Shift.__qualname__})
    tuners.tuner("shift")(again)
    assert type(tuners.build("shift", {}, Placement(3, 1, "ffn"))) is again


def module_class(init=None, **members):
    body = {"forward": lambda self, x: x, **members}
    return type("Mine", (nn.Module,), {**body, "__init__": init} if init else body)


def takes_place(self, place, *, dim: int = 3): ...
def takes_no_place(self, width, *, dim: int = 3): ...
def takes_nothing(self): ...
def takes_positional(self, place, dim: int = 3): ...
def takes_any(self, place, **settings: int): ...
def takes_unannotated(self, place, *, dim=3): ...
def takes_required(self, place, *, dim: int): ...
def takes_unknown_type(self, place, *, dim: "Nowhere" = 3): ...  # noqa: F821
def takes_bad_default(self, place, *, dim: int = "3"): ...
def takes_tensor(self, place, *, dim: torch.Tensor | None = None): ...
def takes_condition(self, place, *, blocks: int = 3): ...


@pytest.mark.parametrize(
    ("name", "cls", "complaint"),
    [
        ("Mine", module_class(takes_place), "lower-case"),
        ("mine", takes_place, "not a torch.nn.Module"),
        ("mine", dict, "not a torch.nn.Module"),
        ("res_adapter", module_class(takes_place), "the name is taken"),
        ("mine", type("Mine", (nn.Module,), {"__init__": takes_place}), "no forward"),
        ("mine", module_class(), "its first parameter"),
        ("mine", module_class(takes_no_place), "its first parameter"),
        ("mine", module_class(takes_nothing), "its first parameter"),
        ("mine", module_class(takes_positional), "keyword-only"),
        ("mine", module_class(takes_any), "keyword-only"),
        ("mine", module_class(takes_unannotated), "`dim: type = default`"),
        ("mine", module_class(takes_required), "`dim: type = default`"),
        ("mine", module_class(takes_unknown_type), "annotations cannot be read"),
        ("mine", module_class(takes_bad_default), "the default '3' of 'dim'"),
        ("mine", module_class(takes_tensor), "a setting that YAML cannot say"),
        ("mine", module_class(takes_condition), "chooses sites"),
        ("mine", module_class(takes_place, refuses=["mha"]), "kind of site to reason"),
        ("mine", module_class(takes_place, maps_widths="yes"), "place.width_in"),
    ],
)
def test_what_is_no_tuner_is_refused(name, cls, complaint):
    before = tuners.names()
    with pytest.raises(RuleError) as error:
        tuners.tuner(name)(cls)
    assert complaint in str(error.value)
    assert tuners.names() == before


def test_a_scale_may_be_a_number_and_the_bottleneck_drops_out():
    place = Placement(8, 2, "ffn")
    module = tuners.build("res_adapter", {"scale": 4.0, "init": "xavier", "dropout": 0.5}, place, seed=0)
    plain = tuners.build("res_adapter", {"init": "xavier"}, place, seed=0)
    x = torch.randn(2, 5, 8)
    assert list(module.state_dict()) == list(plain.state_dict())  # a number is no weight
    torch.testing.assert_close(module.eval()(x), 4 * plain.eval()(x))
    assert not torch.equal(module.train()(x), module(x))
    with pytest.raises(RuleError, match="scale"):
        tuners.build("res_adapter", {"scale": float("nan")}, place)


def test_ssf_against_its_formula():
    module, y = tuners.build("ssf", {}, Placement(8, 2, "ffn"), seed=0), torch.randn(2, 5, 8)
    expected = module.scale * y + module.shift
    torch.testing.assert_close(y + module(y), expected)
    torch.testing.assert_close(module.in_sequence(y), expected)
    assert count(module) == 2 * 8 and abs(module.scale.mean() - 1) < 0.1 and 0 < module.shift.abs().max() < 0.2


def test_ssf_reads_what_an_operation_gives():
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
    rule = {"at": "linear", "insert": "ssf"}
    with pytest.raises(RuleError, match=r"(?s)what an operation gives.*reads: output"):
        fxtune.apply(model, {"rules": [rule]}, example_inputs=(torch.randn(2, 8),))
    tuned = fxtune.apply(model, {"rules": [rule | {"reads": "output"}]}, example_inputs=(torch.randn(2, 8),), seed=0)
    first, second = (tuner for name, tuner in tuned.named_modules() if name.endswith("ssf") or "linear_ssf_" in name)
    x = torch.randn(3, 8)
    hidden = torch.nn.functional.gelu(first.scale * model[0](x) + first.shift)
    torch.testing.assert_close(tuned(x), second.scale * model[2](hidden) + second.shift)
