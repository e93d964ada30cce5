"""The pattern language: what matches, what does not, and how it complains."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fxtune import PatternError, capture
from fxtune.matching import Sites
from fxtune.patterns import load_patterns, read_definitions
from fxtune.source import from_data, parse
from fxtune.view import view


class Net(nn.Module):
    """Two linear maps and a function of their results."""

    def __init__(self, compute: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.compute = compute

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.compute(self.first(x), self.second(x), x)
        return result


def sites(compute: Any, pattern: dict[str, Any], example: torch.Tensor | None = None) -> Sites:
    document = from_data({"fxtune": 1, "patterns": {"unit": pattern}})
    graph = capture(Net(compute), (torch.randn(2, 3, 4) if example is None else example,))
    return Sites(view(graph), load_patterns([read_definitions(document)]))


def matches(compute: Any, dataflow: str, **more: Any) -> int:
    pattern = {"in": "x", "out": "y", "dataflow": dataflow, **more}
    return len(sites(compute, pattern).of("unit"))


def test_one_value_twice() -> None:
    square = "a = linear(x)\ny = mul(a, a)"
    assert matches(lambda a, b, x: a * a, square) == 1
    assert matches(lambda a, b, x: a * b, square) == 0
    both = "a = linear(x)\nb = linear(x)\ny = mul(a, b)"
    assert matches(lambda a, b, x: a * b, both) == 1
    assert matches(lambda a, b, x: a * torch.relu(b), both) == 0


def test_operands_of_sums_and_products_commute_and_others_do_not() -> None:
    for call, commutes in ((torch.add, True), (torch.mul, True), (torch.sub, False), (torch.div, False)):
        text = f"y = {call.__name__}(tanh(linear(x)), relu(linear(x)))"
        assert matches(lambda a, b, x, call=call: call(torch.tanh(a), torch.relu(b)), text) == 1
        assert matches(lambda a, b, x, call=call: call(torch.relu(a), torch.tanh(b)), text) == int(commutes)


def test_layout_casts_and_dropout_are_edges() -> None:
    text = "y = tanh(linear(x))"
    assert matches(lambda a, b, x: torch.tanh(a.transpose(1, 2).reshape(-1, 4, 3).unsqueeze(0).contiguous()), text) == 1
    assert matches(lambda a, b, x: torch.tanh(a.to(torch.float64)), text) == 1
    assert matches(lambda a, b, x: torch.tanh(nn.functional.dropout(a, 0.5)), text) == 1
    assert matches(lambda a, b, x: torch.tanh(a + 1), text) == 0


def test_in_place_operators_bear_the_same_name() -> None:
    assert matches(lambda a, b, x: a.relu_().add_(b), "y = add(relu(linear(x)), linear(x))") == 1


@given(st.integers(0, 5))
def test_a_run_is_of_any_length_and_an_optional_operator_of_one_at_most(length: int) -> None:
    def compute(a: torch.Tensor, b: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        for _ in range(length):
            a = torch.tanh(a)
        return torch.relu(a)

    assert matches(compute, "y = relu(tanh*(linear(x)))") == 1
    assert matches(compute, "y = relu(tanh?(linear(x)))") == int(length <= 1)
    assert matches(compute, "y = relu(linear(x))") == int(length == 0)


def test_parts_of_one_value_are_different_values() -> None:
    text = "h = linear(x)\na, b = part(h)\ny = mul(a, b)"

    def halves(a: torch.Tensor, *_: Any) -> torch.Tensor:
        first, second = a.chunk(2, -1)
        return first * second

    assert matches(halves, text) == 1
    assert matches(lambda a, *_: a[..., :2] * a[..., 2:], text) == 1
    assert matches(lambda a, *_: a.split(2, -1)[0] * a.narrow(-1, 2, 2), text) == 1
    assert matches(lambda a, *_: a[..., :2] * a[..., :2].clone(), "h = linear(x)\na = part(h)\ny = mul(a, a)") == 0


def test_context_lines_stand_around_the_unit() -> None:
    text = "y = tanh(linear(x))\nz = add(_, y)"
    assert matches(lambda a, b, x: torch.tanh(a) + b, text) == 1
    assert matches(lambda a, b, x: torch.tanh(a) * b, text) == 0


def test_alternatives_in_their_order() -> None:
    pattern = {"in": "x", "out": "y", "any": {"first": "y = tanh(x)", "second": "y = tanh(linear(x))"}}
    (site,) = sites(lambda a, b, x: torch.tanh(a), pattern).of("unit")
    assert site.variant == "first"
    pattern["any"] = {"second": "y = tanh(linear(x))", "first": "y = tanh(x)"}
    (site,) = sites(lambda a, b, x: torch.tanh(a), pattern).of("unit")
    assert site.variant == "second"


def test_conditions_and_shapes() -> None:
    text = "y = tanh(linear(x))"
    compute = lambda a, b, x: torch.tanh(a)  # noqa: E731
    assert matches(compute, text, where=["x.width == y.width", "y.rank == 3"]) == 1
    assert matches(compute, text, where=["y.rank > 3"]) == 0
    assert matches(compute, text, shapes={"x": ["B", "...", "D"], "y": ["B", "N", "D"]}) == 1
    assert matches(compute, text, shapes={"y": ["...", "D", "D"]}) == 0
    assert matches(compute, text, shapes={"y": ["B", "N", 5]}) == 0


def test_sites_of_one_kind_do_not_overlap_and_the_later_end_counts() -> None:
    pattern = {"in": "x", "out": "y", "dataflow": "y = tanh?(tanh(linear(x)))"}
    (site,) = sites(lambda a, b, x: torch.tanh(torch.tanh(a)), pattern).of("unit")
    assert site.output.taps[0].node == "tanh_1"


def test_a_near_miss_says_where_and_why() -> None:
    pattern = {"in": "x", "out": "y", "dataflow": "y = neg(exp(tanh(relu(linear(x)))))"}
    found = sites(lambda a, b, x: -torch.exp(torch.tanh(torch.sigmoid(a))), pattern)
    assert found.of("unit") == []
    (miss,) = found.near_misses("unit")
    assert miss.matched == 3 and "sigmoid" in miss.place and "expected `relu`" in miss.reason


@pytest.mark.parametrize(
    ("dataflow", "line", "found"),
    [
        ("y = tanh(linear(x)", 3, "the end of the line; expected ',' or ')'"),
        ("h = linear(x)\ny = tanh(h) )", 4, "')'; expected the end of the line"),
        ("y = tahn(linear(x))", 3, "closest"),
        ("y = reshape(linear(x))", 3, "edges of the view"),
        ("h = linear(x)\nh = tanh(h)\ny = relu(h)", 4, "first at"),
        ("h = linear(x)", 3, "the lines define h"),
        ("y = tanh(linear(z))", 3, "it takes in x"),
        ("y = tanh(linear(_))", 2, "never uses its input `x`"),
        ("y = tanh*(linear(x)", 3, "expected ',' or ')'"),
        ("y = tanh? + linear(x)", 3, "the character '+'"),
        ("y = tanh?(linear(x)) y", 3, "'y'; expected the end of the line"),
    ],
)
def test_errors_point_at_the_line(dataflow: str, line: int, found: str) -> None:
    body = "".join(f"\n      {text}" for text in dataflow.splitlines())
    text = f"fxtune: 1\npatterns:\n  unit:\n    in: x\n    out: y\n    dataflow: |{body}\n"
    with pytest.raises(PatternError) as error:
        load_patterns([read_definitions(parse(text, "mine.yaml"))])
    assert found in str(error.value)
    assert error.value.where == f"mine.yaml:{line + 4}" or (line == 2 and "mine.yaml:4" in str(error.value.where))


def test_a_pattern_built_on_itself_is_refused() -> None:
    unit = {"in": "x", "out": "y", "dataflow": "y = tanh(other(x))"}
    other = {"in": "x", "out": "y", "dataflow": "y = relu(unit(x))"}
    with pytest.raises(PatternError, match="built on itself"):
        load_patterns([read_definitions(from_data({"fxtune": 1, "patterns": {"unit": unit, "other": other}}))])


def test_an_unknown_pattern_gives_the_closest() -> None:
    with pytest.raises(PatternError, match="closest: mha"):
        load_patterns().get("mah")


def test_lines_that_are_apart_share_no_operation() -> None:
    pattern = {"in": "x", "out": "y", "dataflow": "a = run*(x)\nb = run*(x)\ny = add(a, b)", "apart": "a b"}
    document = {"fxtune": 1, "ops": {"run": "tanh relu linear"}, "patterns": {"unit": pattern}}

    def count(compute: Any) -> int:
        graph = capture(Net(compute), (torch.randn(2, 3, 4),))
        return len(Sites(view(graph), load_patterns([read_definitions(from_data(document))])).of("unit"))

    def shared(a: torch.Tensor, b: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(a) + torch.relu(a)

    assert count(shared) == 1
    (site,) = Sites(
        view(capture(Net(shared), (torch.randn(2, 3, 4),))), load_patterns([read_definitions(from_data(document))])
    ).of("unit")
    assert site.input.taps[0].node == "first", "they part at the first linear map, not before it"


def test_a_name_that_nothing_defines_is_an_error() -> None:
    pattern = {"in": "x", "out": "y", "dataflow": "h = linear(x)\ny = tanh(linear(hh))\nz = add(h, y)"}
    with pytest.raises(PatternError, match=r"`hh`.*is not defined") as error:
        load_patterns([read_definitions(from_data({"fxtune": 1, "patterns": {"unit": pattern}}))])
    assert error.value.fix == "did you mean `h`?"
