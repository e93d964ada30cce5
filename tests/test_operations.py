"""Sites of single operations: those that a rule names inside a unit, and those of `linear` and `biased`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import fxtune
from effort import examples
from families import build
from fxtune import capture
from fxtune.errors import FxtuneError
from fxtune.matching import Sites, Weights
from fxtune.patterns import load_patterns, read_definitions
from fxtune.source import from_data
from fxtune.view import view


def sites(model: nn.Module, example: Any = None) -> Sites:
    return Sites(view(capture(model) if example is None else capture(model, example)), load_patterns())


# ---- names -----------------------------------------------------------------------------------------------------------


def test_each_projection_is_a_site() -> None:
    found = sites(build("bert")).of("mha", on=["v_proj", "q_proj"])
    path = "bert.encoder.layer.{}.attention.self.{}"
    assert [(site.kind, site.path, site.block, site.index) for site in found] == [
        ("mha.q_proj", path.format(0, "query"), 0, 0),
        ("mha.v_proj", path.format(0, "value"), 0, 1),
        ("mha.q_proj", path.format(1, "query"), 1, 2),
        ("mha.v_proj", path.format(1, "value"), 1, 3),
    ]
    for site in found:
        assert site.operation is not None
        assert (site.operation.op, site.heads, site.attention, site.calls) == ("linear", 4, None, 1)
        assert site.operation.weights == Weights(f"{site.path}.weight", f"{site.path}.bias", "out x in")
        assert (site.input.width, site.output.width, len(site.input.shape)) == (32, 32, 3)
    assert found[0].label == "mha_q_proj"


def test_a_fused_projection_is_one_site() -> None:
    found = sites(build("vit")).of("mha", on=["q_proj", "k_proj", "v_proj"])
    assert [(site.path, site.kind, site.label) for site in found] == [
        (f"blocks.{i}.attn.qkv", "mha.q_proj+k_proj+v_proj", "mha_q_proj_k_proj_v_proj") for i in range(2)
    ]
    assert [(site.input.width, site.width) for site in found] == [(32, 96)] * 2


def test_the_keys_of_cross_attention_read_the_context() -> None:
    queries, keys = (sites(build("unet")).of("mha", on=[name]) for name in ("q_proj", "k_proj"))
    assert len(queries) == len(keys) == 8
    for query, key in zip(queries, keys, strict=True):
        assert query.path.replace("to_q", "to_k") == key.path
        assert (query.input.value == key.input.value) == ("attn1" in key.path)


def test_a_shared_layer_is_one_site_called_several_times() -> None:
    config = transformers.AlbertConfig(
        vocab_size=40,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
    )
    found = sites(transformers.AlbertModel(config).eval())
    assert [(site.kind, site.calls) for site in found.of("mha", on=["q_proj", "out_proj"])] == [
        ("mha.q_proj", 3),
        ("mha.out_proj", 3),
    ]
    assert [site.calls for site in found.of("ffn", on=["h", "out"])] == [3, 3]


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=0, use_cache=False
    )
    return transformers.GPT2Model(config).eval()


GPT2_INPUTS = {"input_ids": torch.arange(18).reshape(2, 9), "use_cache": False}


def test_a_map_written_for_matrices_is_read_outside_its_reshapes() -> None:
    found = sites(gpt2(), GPT2_INPUTS).of("mha", on=["q_proj", "out_proj"])
    assert [site.path for site in found] == [f"h.{i}.attn.{name}" for i in range(2) for name in ("c_attn", "c_proj")]
    for site in found:
        assert site.operation is not None and site.operation.weights is not None
        assert site.operation.weights == Weights(f"{site.path}.weight", f"{site.path}.bias", "in x out")
        assert (len(site.input.shape), len(site.output.shape)) == (3, 3)


def test_a_name_may_be_dotted_and_must_be_unique() -> None:
    found = sites(build("bert"))
    assert found.of("mha", on=["y.q_proj"]) == found.of("mha", on=["q_proj"])
    with pytest.raises(FxtuneError, match="names several lines") as error:
        found.of("mha", on=["o"])
    assert error.value.found == "y.o, y.o.o"


@pytest.mark.parametrize(
    ("at", "name", "complaint"),
    [
        ("mha", "q_prj", "nearest: y.q_proj"),
        ("mha", "zzz", "its lines are "),
        ("block", "q_proj", "has no line called"),
        ("ffn", "stream", "has no line called"),  # it stands around the unit
        ("mha", "o", "names several lines"),
    ],
)
def test_a_name_that_the_pattern_lacks_is_an_error_in_its_place(
    tmp_path: Any, at: str, name: str, complaint: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"fxtune: 1\nname: mine\nrules:\n  - at: {at}\n    on: [{name}]\n    insert: lora\n")
    with pytest.raises(FxtuneError) as error:
        fxtune.apply(build("bert"), path)
    assert complaint in str(error.value)
    assert error.value.where == f"{path}:4:5"


def test_an_alternative_without_the_name_has_no_site() -> None:
    found = sites(build("unet"))
    assert len(found.of("ffn", on=["u"])) == len(found.of("ffn")) == 4
    assert found.of("ffn", on=["a"]) == []
    assert sites(build("vit")).of("ffn", on=["u"]) == []


# ---- patterns of one operation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit", "bert", "resnet", "convnext", "unet"])
def test_every_linear_map_and_every_bias_of_a_model_is_found(name: str) -> None:
    model = build(name)
    found = sites(model)
    maps = [
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
        or (isinstance(module, nn.Conv2d) and (*module.kernel_size, *module.stride, module.groups) == (1, 1, 1, 1, 1))
    ]
    biases = [path for path, weight in model.named_parameters() if path.endswith("bias")]
    assert sorted(str(weights(site).weight) for site in found.of("linear")) == sorted(maps)
    assert sorted(str(weights(site).bias) for site in found.of("biased")) == sorted(biases)
    # Each can be read and changed somewhere in the graphs.
    assert all(site.input.taps and site.output.taps for kind in ("linear", "biased") for site in found.of(kind))


def weights(site: Any) -> Weights:
    assert site.operation.weights is not None
    found: Weights = site.operation.weights
    return found


def test_new_patterns_disturb_no_other() -> None:
    """A pattern called as an operator is found by rules; in a dataflow the name is the operator's."""
    library = load_patterns()
    assert library.ops_of("linear") == {"linear"} and library.inner("linear") is None
    assert library.get("linear").output == "y"
    assert library.ops_of("norm") is None  # not an operator of the view, whatever ATen calls so


# ---- the facts -------------------------------------------------------------------------------------------------------


class Own(nn.Module):
    """One operation on weights of its own."""

    def __init__(self, compute: Any, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.compute, self.tanh = compute, nn.Tanh()
        self.w = nn.Parameter(torch.randn(shapes[0]))
        self.b = nn.Parameter(torch.randn(shapes[1] if len(shapes) > 1 else (6,)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.tanh(self.compute(x, self.w, self.b))
        return result


STORED: list[tuple[Callable[..., Any], tuple[int, ...], tuple[int, ...], Weights | None]] = [
    (lambda x, w, b: F.linear(x, w, b), (6, 4), (2, 3, 4), Weights("w", "b", "out x in")),
    (lambda x, w, b: F.linear(x, w), (6, 4), (2, 3, 4), Weights("w", None, "out x in")),
    (lambda x, w, b: F.linear(x, w.t(), b), (4, 6), (2, 3, 4), Weights("w", "b", "in x out")),
    (lambda x, w, b: x @ w, (4, 6), (2, 3, 4), Weights("w", None, "in x out")),
    (lambda x, w, b: x @ w.transpose(0, 1), (6, 4), (2, 3, 4), Weights("w", None, "out x in")),
    (lambda x, w, b: torch.addmm(b, x, w), (4, 6), (3, 4), Weights("w", "b", "in x out")),
    (lambda x, w, b: torch.addmm(b, x, w.T.mT), (4, 6), (3, 4), Weights("w", "b", "in x out")),
    (lambda x, w, b: torch.addmm(b, x, w, beta=0.5), (4, 6), (3, 4), None),
    (lambda x, w, b: F.linear(x, w[:6], b), (9, 4), (2, 3, 4), None),
    (lambda x, w, b: F.linear(x, w, b * 2), (6, 4), (2, 3, 4), Weights("w", None, "out x in", "bias")),
    (lambda x, w, b: torch.addmm(b * 2, x, w), (4, 6), (3, 4), Weights("w", None, "in x out", "self")),
    (lambda x, w, b: torch.addmm(b.expand(3, 6), x, w), (4, 6), (3, 4), None),
    (lambda x, w, b: F.linear(x, w.reshape(6, 4), b), (4, 6), (2, 3, 4), None),
    (lambda x, w, b: F.conv2d(x, w, b), (6, 4, 1, 1), (2, 4, 3, 3), Weights("w", "b", "convolution")),
]


@pytest.mark.parametrize("case", range(len(STORED)))
def test_how_a_weight_is_stored(case: int) -> None:
    compute, shape, example, expected = STORED[case]
    model, x = Own(compute, shape), torch.randn(example)
    (site,) = operations(model, x, "y = tanh(f)\nf = linear(x)", "f")
    assert site.operation.op == "linear"
    assert site.operation.weights == expected
    if expected is not None:
        weight = model.w.detach().flatten(2).squeeze(-1) if model.w.ndim == 4 else model.w.detach()
        weight = weight.T if expected.layout == "in x out" else weight
        tokens = x.movedim(site.input.channel_axis, -1)
        bias = model.b.detach() if expected.bias else 2 * model.b.detach() if expected.computed else 0
        result = tokens @ weight.T + bias
        torch.testing.assert_close(model(x).movedim(site.output.channel_axis, -1), torch.tanh(result))


OTHERS: list[tuple[Callable[..., Any], tuple[tuple[int, ...], ...], tuple[int, ...], str, Weights | None]] = [
    (
        lambda x, w, b: F.conv2d(x, w, b, padding=1),
        ((6, 4, 1, 1),),
        (2, 4, 3, 3),
        "conv",
        Weights("w", "b", "convolution"),
    ),
    (
        lambda x, w, b: F.conv2d(x, w, b, groups=2),
        ((6, 2, 1, 1),),
        (2, 4, 3, 3),
        "conv",
        Weights("w", "b", "convolution"),
    ),
    (
        lambda x, w, b: F.conv2d(x, w, b, stride=2),
        ((6, 4, 1, 1),),
        (2, 4, 3, 3),
        "conv",
        Weights("w", "b", "convolution"),
    ),
    (
        lambda x, w, b: F.conv_transpose2d(x, w, b),
        ((4, 6, 2, 2),),
        (2, 4, 3, 3),
        "conv_transpose2d",
        Weights("w", "b", "transposed"),
    ),
    (lambda x, w, b: F.layer_norm(x, (6,), w, b), ((6,), (6,)), (2, 3, 6), "layer_norm", Weights("w", "b", "other")),
    (
        lambda x, w, b: torch.native_layer_norm(x, (6,), w, b, 1e-5)[0],
        ((6,), (6,)),
        (2, 3, 6),
        "layer_norm",
        Weights("w", "b", "other"),
    ),
    (lambda x, w, b: F.layer_norm(x, (6,)) + 0 * b, ((6,), (6,)), (2, 3, 6), "layer_norm", None),
    (lambda x, w, b: F.group_norm(x, 2, w, b), ((6,), (6,)), (2, 6, 3), "group_norm", Weights("w", "b", "other")),
]


@pytest.mark.parametrize("case", range(len(OTHERS)))
def test_operations_that_are_no_linear_map(case: int) -> None:
    compute, shapes, example, op, expected = OTHERS[case]
    found = sites(Own(compute, *shapes), (torch.randn(example),))
    assert found.of("linear") == []
    assert [
        (site.operation.op, site.width, site.operation.weights) for site in found.of("biased") if site.operation
    ] == ([(op, 6, expected)] if expected else [])


def operations(model: nn.Module, x: torch.Tensor, dataflow: str, name: str) -> list[Any]:
    pattern = {"in": "x", "out": "y", "dataflow": dataflow}
    document = from_data({"fxtune": 1, "patterns": {"unit": pattern}})
    return Sites(view(capture(model, (x,))), load_patterns([read_definitions(document)])).of("unit", on=[name])


def test_a_bias_for_more_than_channels_is_left_alone() -> None:
    model = Own(lambda x, w, b: F.layer_norm(x, (3, 6), w, b), (3, 6), (3, 6))
    assert sites(model, (torch.randn(2, 3, 6),)).of("biased") == []


@settings(max_examples=examples(30, 200))
@given(st.permutations(range(3)), st.permutations(range(3)), st.booleans())
def test_both_ends_have_their_tokens_in_one_order(before: list[int], behind: list[int], flat: bool) -> None:
    """Whatever layout stands around a map, what is added at its end fits what was read at its beginning."""

    def compute(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        x = x.permute(before)
        y = F.linear(x.reshape(-1, 6), w).reshape(*x.shape[:2], 6) if flat else F.linear(x, w)
        return y.permute(behind)

    class Inside(nn.Module):  # a module around it, of which the layout is a part
        def __init__(self) -> None:
            super().__init__()
            self.inner = Own(compute, (6, 6))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.inner(x) * 2
            return result

    model = Inside()
    sizes = [0, 0, 0]
    for axis, size in zip(
        before, (5, 5, 6), strict=True
    ):  # as many samples as tokens: mixing them up shows in no shape
        sizes[axis] = size
    x = torch.randn(sizes, dtype=torch.float64)
    model = model.double()
    rules = {"train": ["tuners"], "rules": [{"at": "linear", "insert": {"lora": {"rank": 2}}}]}
    tuned = fxtune.apply(model, rules, example_inputs=(x,), dtype=torch.float64)
    tuners = dict(tuned.named_parameters())
    (a,), (b,) = ([weight for key, weight in tuners.items() if key.endswith(f".{name}")] for name in "AB")
    b.data.normal_()
    with torch.no_grad():
        found = tuned(x)
        model.inner.w += b @ a
        torch.testing.assert_close(found, model(x), rtol=1e-12, atol=1e-12)
