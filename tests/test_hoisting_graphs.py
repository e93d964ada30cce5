"""The pass on small graphs: regions, several readers, memory that is overwritten, cuts of autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from fxtune.hoisting import Hoisted, hoist
from fxtune.tracing import Region, capture

BATCH, TOKENS, DIM = 2, 6, 4
X = torch.randn(BATCH, TOKENS, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
WEIGHT = torch.randn(DIM, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
MIX = torch.randn(TOKENS, TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
POSITION = torch.randn(1, TOKENS, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class Model(nn.Module):
    """A forward given as a function of the module and its input."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **children: nn.Module) -> None:
        super().__init__()
        self.run = run
        self.map, self.norm = nn.Linear(DIM, DIM), nn.LayerNorm(DIM)
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def hoisted(model: nn.Module, *, through_detach: bool = True) -> tuple[Region, Hoisted]:
    """A captured model after the pass, which gives the same as before it."""
    torch.manual_seed(0)
    model = model.double().eval()
    graph = capture(model, (X,))
    report = hoist(graph, through_detach=through_detach)
    torch.testing.assert_close(graph(X), model(X), rtol=1e-12, atol=1e-12)
    return graph, report


def sizes(graph: fx.GraphModule, *names: str) -> list[int]:
    """The number of tokens that each call of an operator computes."""
    seen = []

    class Watching(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func._opname in names:
                first = result[0] if isinstance(result, tuple) else result
                seen.append(first.numel() // BATCH // DIM)
            return result

    with Watching():
        graph(X)
    return seen


def test_a_select_moves_to_the_input() -> None:
    graph, report = hoisted(Model(lambda m, x: torch.tanh(m.norm(m.map(x)))[:, 2]))
    assert sizes(graph, "tanh") == [1]
    assert sizes(graph, "native_layer_norm") == [1]
    assert (report.operations, report.parts) == (3, ("1 of 6",))


@pytest.mark.parametrize(
    ("read", "tokens"),
    [
        (lambda x: (x[:, 0], x[:, 1]), 2),
        (lambda x: (x[:, 0], x[:, 0]), 1),
        (lambda x: x[:, 1:3][:, 1], 1),
        (lambda x: x[:, -1], 1),
        (lambda x: x[:, -2:], 2),
        (lambda x: x[:, 1:], TOKENS),
        (lambda x: (x[:, 0], x.mean(1)), TOKENS),
        (lambda x: x[:, ::2], TOKENS),
        (lambda x: x[:, [0, 1]], TOKENS),
        (lambda x: x.chunk(3, 1)[1], 2),
        (lambda x: x.unbind(1)[3], 1),
        (lambda x: torch.cat([x, x], 1)[:, 7], 1),
    ],
)
def test_what_is_read_is_what_is_computed(read: Callable[[Tensor], Any], tokens: int) -> None:
    graph, _ = hoisted(Model(lambda m, x: read(torch.tanh(m.map(x) + POSITION))))
    assert sum(sizes(graph, "tanh")) == tokens


def test_far_tokens_are_computed_apart() -> None:
    graph, _ = hoisted(Model(lambda m, x: (torch.tanh(x)[:, 0], torch.tanh(x)[:, 5])))
    assert sizes(graph, "tanh") == [1, 1]


def test_what_mixes_tokens_stops_it() -> None:
    graph, report = hoisted(Model(lambda m, x: torch.tanh(torch.exp(x).softmax(1))[:, 0]))
    assert sizes(graph, "exp") == [TOKENS]
    assert sizes(graph, "tanh") == [1]
    assert report.operations == 1


def inner(run: Callable[[Any, Tensor], Any]) -> Model:
    return Model(run, child=nn.Identity())  # a module with children is a region


def test_regions_give_and_take_parts() -> None:
    child = inner(lambda m, x: x + m.norm(torch.tanh(m.map(x))))
    graph, _ = hoisted(Model(lambda m, x: m.child(m.map(torch.exp(x)))[:, 0], child=child))
    assert sizes(graph, "tanh") == sizes(graph, "exp") == [1]
    assert isinstance(graph.child, Region)
    assert graph.child(X[:, :1]).shape == (BATCH, 1, DIM)


def test_a_region_that_is_called_twice_is_left_alone() -> None:
    child = inner(lambda m, x: torch.tanh(m.map(x)) + x)
    graph, _ = hoisted(Model(lambda m, x: torch.exp(m.child(m.child(x)))[:, 0], child=child))
    assert sizes(graph, "tanh") == [TOKENS, TOKENS]
    assert sizes(graph, "exp") == [1]


def test_inside_a_region_that_is_called_twice() -> None:
    child = inner(lambda m, x: x + torch.tanh(m.map(x))[:, :1])
    graph, _ = hoisted(Model(lambda m, x: m.child(m.child(x)), child=child))
    assert sizes(graph, "tanh") == [1, 1]


def test_a_region_with_several_results() -> None:
    child = inner(lambda m, x: (torch.tanh(m.map(x)), torch.exp(x)))

    def run(m: Any, x: Tensor) -> Tensor:
        a, b = m.child(x)
        return a[:, 0] + b.mean(1)

    graph, _ = hoisted(Model(run, child=child))
    assert (sizes(graph, "tanh"), sizes(graph, "exp")) == ([1], [TOKENS])


def test_a_select_inside_a_region() -> None:
    graph, _ = hoisted(Model(lambda m, x: m.child(torch.tanh(x)), child=inner(lambda m, x: m.map(x)[:, 0])))
    assert sizes(graph, "tanh") == [1]


def test_memory_that_is_overwritten() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = torch.exp(x)
        view = y.transpose(1, 2)
        first = torch.tanh(y[:, 0])
        view.mul_(2.0)
        return first + torch.tanh(y)[:, 0]

    graph, _ = hoisted(Model(run))
    assert sizes(graph, "exp") == [TOKENS]
    assert sizes(graph, "tanh") == [1, 1]


def test_an_inplace_activation_in_a_leaf() -> None:
    graph, _ = hoisted(Model(lambda m, x: torch.exp(m.act(torch.tanh(x)))[:, 0], act=nn.ReLU(inplace=True)))
    assert (sizes(graph, "tanh"), sizes(graph, "exp")) == ([TOKENS], [1])


@pytest.mark.parametrize(("through", "tokens"), [(True, 1), (False, TOKENS)])
def test_through_detach_when_asked_to(through: bool, tokens: int) -> None:
    model = Model(lambda m, x: torch.tanh(torch.exp(x).detach())[:, 0])
    graph, _ = hoisted(model, through_detach=through)
    assert (sizes(graph, "exp"), sizes(graph, "tanh")) == ([tokens], [1])


def test_in_a_context() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = torch.tanh(x)
            a = y * 2.0
        return (torch.exp(x) + y + a)[:, 0]

    graph, _ = hoisted(Model(run))
    assert (sizes(graph, "tanh"), sizes(graph, "exp")) == ([1], [1])
    x = X.clone().requires_grad_()
    (found,) = torch.autograd.grad(graph(x).sum(), x)
    (expected,) = torch.autograd.grad(x.exp()[:, 0].sum(), x)
    torch.testing.assert_close(found, expected)


def test_the_last_of_any_number_of_tokens() -> None:
    graph, _ = hoisted(Model(lambda m, x: torch.tanh(m.map(x))[:, -1]))
    assert sizes(graph, "tanh") == [1]
    longer = torch.randn(BATCH, 9, DIM, dtype=torch.float64)
    torch.testing.assert_close(graph(longer), torch.tanh(graph.map(longer))[:, -1])


def test_fused_projection() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).reshape(BATCH, TOKENS, 3, 2, DIM // 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return m.map(y.transpose(1, 2).reshape(BATCH, TOKENS, DIM))[:, 0]

    graph, _ = hoisted(Model(run, qkv=nn.Linear(DIM, 3 * DIM)))
    assert sorted(sizes(graph, "addmm", "mm")) == [1, 1, 2 * TOKENS]


def test_values_stay_true() -> None:
    child = inner(lambda m, x: x + m.norm(torch.tanh(m.map(x))))
    graph, _ = hoisted(Model(lambda m, x: m.child(m.map(torch.exp(x)))[:, 0], child=child))
    told: dict[str, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            result = super().run_node(node)
            if isinstance(val := node.meta.get("val"), Tensor):
                shape = [int(s) if isinstance(s, int) else s.node.hint for s in val.shape]
                told[node.name] = (shape, list(result.shape))
            return result

    for region, x in ((graph, X), (graph.child, X[:, :1])):
        Recorder(region).run(x)
    assert len(told) > 8
    assert all(told_shape == shape for told_shape, shape in told.values())


# ---- any program -----------------------------------------------------------------------------------------------------


def _heads(x: Tensor) -> Tensor:
    return x.reshape(BATCH, -1, 2, DIM // 2).transpose(1, 2)


def _inplace(x: Tensor, y: Tensor) -> Tensor:
    copied = x.clone()
    copied[:, :1].add_(1.0)
    return copied * y


STEPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda x, y: nn.functional.linear(x, WEIGHT),
    "matmul": lambda x, y: x @ WEIGHT,
    "gelu": lambda x, y: nn.functional.gelu(x),
    "norm": lambda x, y: nn.functional.layer_norm(x, [DIM]),
    "add": lambda x, y: x + y,
    "gate": lambda x, y: x * y.sigmoid(),
    "position": lambda x, y: x + POSITION,
    "mix": lambda x, y: MIX @ x,
    "softmax": lambda x, y: x.softmax(1),
    "pool": lambda x, y: x - y.mean(1, keepdim=True),
    "first": lambda x, y: x + y[:, :1],
    "last": lambda x, y: x + y[:, -1:].expand(-1, TOKENS, -1),
    "heads": lambda x, y: _heads(x).tanh().transpose(1, 2).reshape(BATCH, TOKENS, DIM),
    "rows": lambda x, y: (x.contiguous().view(-1, DIM) @ WEIGHT).view(BATCH, TOKENS, DIM),
    "swap": lambda x, y: torch.cat(x.chunk(2, -1)[::-1], -1),
    "shift": lambda x, y: torch.cat([y[:, 1:], x[:, :1]], 1),
    "join": lambda x, y: torch.cat([x, y], 1)[:, 3 : 3 + TOKENS],
    "attend": lambda x, y: (
        nn.functional.scaled_dot_product_attention(_heads(x), _heads(y), _heads(y)).transpose(1, 2).flatten(2)
    ),
    "causal": lambda x, y: nn.functional.scaled_dot_product_attention(x, y, x, is_causal=True),
    "copy in place": _inplace,
    "stack": lambda x, y: torch.stack([x, y], 1).unbind(1)[1] + x,
    "turn": lambda x, y: x.permute(1, 0, 2).unsqueeze(1).squeeze(1).movedim(0, 1),
}
READS: dict[str, Callable[[Tensor], Any]] = {
    "one": lambda x: x[:, 2],
    "last": lambda x: x[:, -1],
    "two": lambda x: x[:, 1:3],
    "far": lambda x: (x[:, 0], x[:, 5]),
    "channel": lambda x: x[:, 0, 1],
    "all": lambda x: x.mean(1),
}


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8
    ),
    reads=st.lists(st.tuples(st.sampled_from(sorted(READS)), st.integers(0, 8)), min_size=1, max_size=2),
)
def test_any_program_gives_the_same(steps: list[tuple[str, int, int]], reads: list[tuple[str, int]]) -> None:
    def program(x: Tensor) -> Any:
        values = [x]
        for name, a, b in steps:
            values.append(STEPS[name](values[-1 - a % len(values)], values[-1 - b % len(values)]))
        return [READS[name](values[-1 - place % len(values)]) for name, place in reads]

    graph = make_fx(program, pre_dispatch=True)(X)
    hoist(graph, through_detach=True)
    x = X.clone().requires_grad_()
    found, expected = _flat(graph(x)), _flat(program(x))
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    ours, theirs = (torch.autograd.grad(sum(y.sin().sum() for y in out), x)[0] for out in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def _flat(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [tensor for item in result for tensor in _flat(item)]
