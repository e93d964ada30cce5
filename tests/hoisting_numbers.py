"""Calls of operators on each number, of products, and of operators that keep axes apart."""

from __future__ import annotations

import operator
from typing import Any

from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes
from torch import Tensor

from hoisting_drawing import SIDE, Draw, Drawn, aten, axes, axis, numbers, shape

# ---- operators on each number alone ----------------------------------------------------------------------------------

ON_WHOLE_NUMBERS = {"bitwise_not", "bitwise_and", "bitwise_or", "__and__", "__or__", "and", "or"}
IN_PYTHON = {"and": operator.and_, "or": operator.or_}
SETTINGS: dict[str, dict[str, Any]] = {
    "clamp": {"min": 0.3, "max": 0.8},
    "dropout": {"p": 0.0, "train": True},
    "alpha_dropout": {"p": 0.5, "train": False},
}


def by_number(name: str) -> Draw:
    """Any overload whose operands are broadcast."""

    @st.composite
    def drawn(draw: Draw) -> Drawn:
        whole = name in ON_WHOLE_NUMBERS
        if name in IN_PYTHON:
            return Drawn(IN_PYTHON[name], tuple(_broadcast(draw, 2, whole=True)))
        overload = draw(st.sampled_from(_overloads(name)))
        arguments = [a for a in overload._schema.arguments if not a.has_default_value()]
        operands = _broadcast(draw, sum(str(a.type) == "Tensor" for a in arguments), whole=whole)
        place = {"where": 0, "masked_fill": 1}.get(name)
        if place is not None:
            operands[place] = operands[place] > 0.5
        given = iter(operands)
        args = [next(given) if str(a.type) == "Tensor" else 2 if whole else 2.0 for a in arguments]
        settings = SETTINGS.get(name, {})
        named = [settings.get(a.name, value) for a, value in zip(arguments, args, strict=True)]
        rest = {key: value for key, value in settings.items() if key not in {a.name for a in arguments}}
        return Drawn(overload, tuple(named), rest)

    return drawn


def _broadcast(draw: Draw, many: int, *, whole: bool) -> list[Tensor]:
    shapes = draw(mutually_broadcastable_shapes(num_shapes=many, min_dims=1, max_dims=4, max_side=4)).input_shapes
    return [numbers(draw, *shape, whole=whole) for shape in shapes]


def _overloads(name: str) -> list[Any]:
    packet = getattr(aten, name)
    found = [getattr(packet, overload) for overload in packet.overloads()]
    fit = [overload for overload in found if _fits(overload)]
    assert fit, name
    return fit


def _fits(overload: Any) -> bool:
    """Whether it takes tensors that are broadcast, then numbers, and gives a new tensor."""
    schema = overload._schema
    kinds = [str(a.type) for a in schema.arguments if not a.has_default_value()]
    plain = all(kind in ("Tensor", "number", "float", "bool") for kind in kinds)
    fitting = plain and bool(kinds) and kinds[0] == "Tensor" and [str(r.type) for r in schema.returns] == ["Tensor"]
    # A mask is filled with one number; the others take tensors that need not be given.
    odd = str(overload) in ("aten.masked_fill.Tensor", "aten.clamp.Tensor")
    return fitting and not odd and not schema.is_mutable and "out" not in overload._overloadname


# ---- products --------------------------------------------------------------------------------------------------------


@st.composite
def linear(draw: Draw) -> Drawn:
    *rows, channels = shape(draw)
    out = draw(SIDE)
    bias = [numbers(draw, out)] if draw(st.booleans()) else []
    return Drawn(aten.linear.default, (numbers(draw, *rows, channels), numbers(draw, out, channels), *bias))


def product(name: str) -> Draw:
    @st.composite
    def drawn(draw: Draw) -> Drawn:
        batch = {"mm": 0, "bmm": 1}.get(name)
        n, k, m = draw(SIDE), draw(SIDE), draw(SIDE)
        if batch is None:
            shapes = draw(mutually_broadcastable_shapes(num_shapes=2, max_dims=2, max_side=3)).input_shapes
        else:
            shapes = [tuple(draw(SIDE) for _ in range(batch))] * 2
        return Drawn(getattr(aten, name).default, (numbers(draw, *shapes[0], n, k), numbers(draw, *shapes[1], k, m)))

    return drawn


def with_sum(name: str) -> Draw:
    @st.composite
    def drawn(draw: Draw) -> Drawn:
        batch = [draw(SIDE)] if name == "baddbmm" else []
        n, k, m = draw(SIDE), draw(SIDE), draw(SIDE)
        full = [*batch, n, m]
        cut = full[draw(st.integers(0, 2)) :]
        added = [1 if draw(st.booleans()) else size for size in cut] or [m]
        return Drawn(
            getattr(aten, name).default,
            (numbers(draw, *added), numbers(draw, *batch, n, k), numbers(draw, *batch, k, m)),
            {"beta": 0.5} if draw(st.booleans()) else {},
        )

    return drawn


@st.composite
def attention(draw: Draw) -> Drawn:
    batch, heads, queries, keys, dim, out = (draw(SIDE) for _ in range(6))
    groups = draw(st.sampled_from([1, 2]))
    q = numbers(draw, batch, heads * groups, queries, dim)
    k, v = numbers(draw, batch, heads, keys, dim), numbers(draw, batch, heads, keys, out)
    kwargs: dict[str, Any] = {"enable_gqa": True} if groups > 1 else {}
    if draw(st.booleans()):
        sizes = [batch, heads * groups, queries, keys]
        mask = [1 if axis < 3 and draw(st.booleans()) else size for axis, size in enumerate(sizes)]
        return Drawn(
            aten.scaled_dot_product_attention.default,
            (q, k, v, numbers(draw, *mask[draw(st.integers(0, 2)) :])),
            kwargs,
        )
    if draw(st.booleans()):
        kwargs["is_causal"] = True
    return Drawn(aten.scaled_dot_product_attention.default, (q, k, v), kwargs)


def convolution(name: str) -> Draw:
    @st.composite
    def drawn(draw: Draw) -> Drawn:
        space = int(name[4])
        sides = [draw(st.integers(3, 5)) for _ in range(space)]
        kernel = [draw(st.sampled_from([1, 1, 2])) for _ in range(space)]
        stride = [draw(st.sampled_from([1, 1, 2])) for _ in range(space)]
        padding = [draw(st.sampled_from([0, 0, 1])) for _ in range(space)]
        groups = draw(st.sampled_from([1, 1, 2]))
        ins, outs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
        return Drawn(
            getattr(aten, name).default,
            (
                numbers(draw, draw(SIDE), ins, *sides),
                numbers(draw, outs, ins // groups, *kernel),
                numbers(draw, outs) if draw(st.booleans()) else None,
                stride,
                padding,
                [1] * space,
                groups,
            ),
        )

    return drawn


@st.composite
def embedding(draw: Draw) -> Drawn:
    return Drawn(aten.embedding.default, (numbers(draw, 4, draw(SIDE)), numbers(draw, *shape(draw), whole=True)))


# ---- operators that keep axes apart ----------------------------------------------------------------------------------


def norm(name: str) -> Draw:
    @st.composite
    def drawn(draw: Draw) -> Drawn:
        sizes = shape(draw, 2)
        if name == "group_norm":
            sizes = [sizes[0], 4, *sizes[2:]]
            return Drawn(aten.group_norm.default, (numbers(draw, *sizes), 2, numbers(draw, 4), numbers(draw, 4)))
        last = sizes[draw(st.integers(1, len(sizes) - 1)) :]
        return Drawn(getattr(aten, name).default, (numbers(draw, *sizes), last, numbers(draw, *last)))

    return drawn


def over_axis(name: str) -> Draw:
    @st.composite
    def drawn(draw: Draw) -> Drawn:
        sizes = shape(draw, 1)
        dim = axis(draw, len(sizes))
        if name == "glu":
            sizes[dim] = 4
        more: tuple[Any, ...] = (False,) if name in ("_softmax", "_log_softmax") else ()
        target = getattr(aten, name)
        return Drawn(target.int if "int" in target.overloads() else target.default, (numbers(draw, *sizes), dim, *more))

    return drawn


@st.composite
def flip(draw: Draw) -> Drawn:
    sizes = shape(draw)
    return Drawn(aten.flip.default, (numbers(draw, *sizes), axes(draw, len(sizes))))


REDUCTIONS: dict[str, tuple[str, ...]] = {
    "mean": ("dim", "default"),
    "sum": ("dim_IntList", "default"),
    "amax": ("default",),
    "amin": ("default",),
    "prod": ("default", "dim_int"),
    "logsumexp": ("default",),
    "var": ("dim", "correction"),
    "std": ("dim", "correction"),
    "argmax": ("default",),
    "argmin": ("default",),
    "any": ("default", "dim", "dims"),
    "all": ("default", "dim", "dims"),
    "linalg_vector_norm": ("default",),
}
ONE_AXIS = {("prod", "dim_int"), ("any", "dim"), ("all", "dim"), ("argmax", "default"), ("argmin", "default")}
NO_AXIS = {(name, "default") for name in ("mean", "sum", "prod", "any", "all")}


def reduction(name: str) -> Draw:
    @st.composite
    def drawn(draw: Draw) -> Drawn:
        overload = draw(st.sampled_from(REDUCTIONS[name]))
        target = getattr(getattr(aten, name), overload)
        x = numbers(draw, *shape(draw, 3))
        if (name, overload) in NO_AXIS:
            return Drawn(target, (x,))
        dims: Any = axis(draw, x.dim()) if (name, overload) in ONE_AXIS else axes(draw, x.dim())[:2]
        kwargs = {"keepdim": True} if draw(st.booleans()) else {}
        if name == "linalg_vector_norm":
            return Drawn(target, (x, 2, dims), kwargs)
        if overload == "dim" and name in ("var", "std"):
            return Drawn(target, (x, dims, False), kwargs)
        return Drawn(target, (x, dims), {**kwargs, "correction": 0} if overload == "correction" else kwargs)

    return drawn
