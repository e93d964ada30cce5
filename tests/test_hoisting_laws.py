"""Each operator's law: a part of the result is what the moved call gives for the parts of the operands."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from fxtune.hoisting import laws
from fxtune.hoisting.axes import Law
from fxtune.hoisting.call import Call, Moved, Touch, Want, walk
from fxtune.hoisting.part import Part, Range
from hoisting_calls import CALLS
from hoisting_drawing import Drawn

TABLE = laws.LAWS | laws.DETACH


def node_of(drawn: Drawn) -> fx.Node:
    """The call as a node of a graph, whose values are real tensors."""
    graph = fx.Graph()

    def placed(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        node = graph.placeholder("x")
        node.meta["val"] = leaf
        return node

    node = graph.call_function(drawn.target, walk(drawn.args, placed), drawn.kwargs)
    node.meta["val"] = drawn.target(*drawn.args, **drawn.kwargs)
    if drawn.item is not None:
        items = node.meta["val"]
        node = graph.call_function(operator.getitem, (node, drawn.item))
        node.meta["val"] = items[drawn.item]
    return node


def taken(tensor: Tensor, part: Part) -> Tensor:
    """A part of a tensor, in numpy's words."""
    places: list[Any] = [slice(None)] * tensor.dim()
    for axis, range in part:
        assert range.length >= 1
        places[axis] = [(range.start + place) % tensor.shape[axis] for place in torch.arange(range.length).tolist()]
        tensor = tensor[tuple(places)]
        places[axis] = slice(None)
    return tensor


def run(moved: Moved) -> Any:
    """The moved call, on what it asks for. What is touched alone is as small as it may be."""

    def value(leaf: Any) -> Any:
        if isinstance(leaf, Want):
            return taken(leaf.node.meta["val"], leaf.part)
        if isinstance(leaf, Touch):
            val = leaf.node.meta["val"]
            return taken(val, Part.of({axis: Range(0, 1) for axis in range(val.dim()) if axis not in leaf.axes}))
        assert not isinstance(leaf, fx.Node)
        return leaf

    return moved.target(*walk(moved.args, value), **walk(moved.kwargs, value))


@st.composite
def parts(draw: Any, shape: tuple[int, ...]) -> Part:
    """A range on any of the axes, from the front or from the back."""
    found: dict[int, Range | None] = {}
    for axis, size in enumerate(shape):
        if size > 1 and draw(st.booleans()):
            start = draw(st.integers(0, size - 1))
            found[axis] = Range(start, draw(st.integers(1, size - start)))
    return Part.of(found).fitting(shape)


def test_every_law_has_its_calls() -> None:
    assert set(CALLS) == set(TABLE)


def check(name: str, law: Law) -> bool:
    """Whether any drawn call was moved; an error if one was and gave something else."""
    moved_any = False

    @settings(report_multiple_bugs=False)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        nonlocal moved_any
        drawn = data.draw(CALLS[name]())
        node = node_of(drawn)
        whole = node.meta["val"]
        part = data.draw(parts(tuple(whole.shape))) if isinstance(whole, Tensor) else Part()
        moved = law(Call(node), part)
        if moved is None:
            return
        found = run(moved)
        moved_any = moved_any or any(isinstance(read, Touch) or getattr(read, "part", None) for read in moved.reads())
        if not isinstance(whole, Tensor):
            assert found == whole
            return
        expected = taken(whole, part)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        if not drawn.only_shape:
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, equal_nan=True)

    holds()
    return moved_any


@pytest.mark.parametrize("name", sorted(TABLE))
def test_a_part_of_the_result_is_the_result_on_parts(name: str) -> None:
    assert check(name, TABLE[name]), "no example was drawn in which the law moves anything"


def same_axes(call: Call, part: Part) -> Moved:
    """A law that holds for few operators: the same part of the first operand."""
    name = next(name for name in ("self", "input", "query", "tensors", "weight") if name in call.given)
    return call.moved({name: part})


@pytest.mark.parametrize(
    "name",
    [
        *("softmax", "layer_norm", "permute", "transpose", "unsqueeze", "squeeze", "select", "slice", "cat", "stack"),
        *("linear", "matmul", "addmm", "reshape", "flatten", "expand", "mean", "scaled_dot_product_attention"),
        *("conv2d", "embedding", "flip", "cumsum", "glu", "movedim"),
    ],
)
def test_a_wrong_law_is_caught(name: str) -> None:
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        check(name, same_axes)


def test_a_law_that_forgets_broadcasting_is_caught() -> None:
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        check("add", lambda call, part: call.each(lambda shape: part))


def test_an_attention_that_forgets_its_mask_is_caught() -> None:
    def forgetful(call: Call, part: Part) -> Moved | None:
        moved = TABLE["scaled_dot_product_attention"](call, part)
        return moved and Moved(
            moved.target, moved.args[:3], {k: v for k, v in moved.kwargs.items() if k != "attn_mask"}
        )

    with pytest.raises(AssertionError):
        check("scaled_dot_product_attention", forgetful)
