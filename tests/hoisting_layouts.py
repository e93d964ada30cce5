"""Calls of operators that lay out, part and join tensors, and touch them alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes

from hoisting_drawing import SIDE, Draw, Drawn, aten, axes, axis, numbers, shape

# ---- layout ----------------------------------------------------------------------------------------------------------


@st.composite
def permute(draw: Draw) -> Drawn:
    x = numbers(draw, *shape(draw))
    order = draw(st.permutations(range(x.dim())))
    return Drawn(aten.permute.default, (x, [a - x.dim() if draw(st.booleans()) else a for a in order]))


def swap(name: str) -> Draw:
    @st.composite
    def drawn(draw: Draw) -> Drawn:
        x = numbers(draw, *shape(draw))
        target = getattr(aten, name)
        return Drawn(
            target.int if name == "transpose" else target.default, (x, axis(draw, x.dim()), axis(draw, x.dim()))
        )

    return drawn


def turned(name: str, ranks: tuple[int, int]) -> Draw:
    @st.composite
    def drawn(draw: Draw) -> Drawn:
        return Drawn(getattr(aten, name).default, (numbers(draw, *shape(draw, *ranks)),))

    return drawn


def movedim(name: str) -> Draw:
    @st.composite
    def drawn(draw: Draw) -> Drawn:
        x = numbers(draw, *shape(draw))
        packet = getattr(aten, name)
        if draw(st.booleans()):
            return Drawn(packet.int, (x, axis(draw, x.dim()), axis(draw, x.dim())))
        source = axes(draw, x.dim())
        to = draw(st.permutations(range(x.dim())))[: len(source)]
        return Drawn(packet.intlist, (x, source, list(to)))

    return drawn


@st.composite
def unsqueeze(draw: Draw) -> Drawn:
    x = numbers(draw, *shape(draw, 1, 3))
    return Drawn(aten.unsqueeze.default, (x, axis(draw, x.dim() + 1)))


@st.composite
def squeeze(draw: Draw) -> Drawn:
    sizes = [1 if draw(st.booleans()) else size for size in shape(draw)]
    x = numbers(draw, *sizes)
    kind = draw(st.sampled_from(["default", "dim", "dims"]))
    given = {"default": (), "dim": (axis(draw, x.dim()),), "dims": (axes(draw, x.dim()),)}[kind]
    return Drawn(getattr(aten.squeeze, kind), (x, *given))


def regrouped(name: str) -> Draw:
    """A tensor whose axes are split, and another in which they are merged; from one to the other."""

    @st.composite
    def drawn(draw: Draw) -> Drawn:
        fine = shape(draw, 1, 5)
        cuts = sorted({0, len(fine), *draw(st.lists(st.integers(0, len(fine)), max_size=3))})
        runs = [fine[a:b] for a, b in itertools.pairwise(cuts)]
        if name == "flatten":
            start, end = sorted(draw(st.integers(0, len(fine) - 1)) for _ in range(2))
            return Drawn(aten.flatten.using_ints, (numbers(draw, *fine), start, end - len(fine)))
        coarse = [_product(run) for run in runs]
        if name == "unflatten":
            at = draw(st.integers(0, len(runs) - 1))
            return Drawn(aten.unflatten.int, (numbers(draw, *coarse), at - len(runs), _open(draw, runs[at])))
        before, after = draw(st.permutations([fine, coarse]))
        return Drawn(getattr(aten, name).default, (numbers(draw, *before), _open(draw, after)))

    return drawn


def _open(draw: Draw, sizes: list[int]) -> list[int]:
    """The sizes, of which one may be left open."""
    place = draw(st.integers(-len(sizes), len(sizes) - 1))
    return [-1 if number == place else size for number, size in enumerate(sizes)]


def _product(sizes: list[int]) -> int:
    found = 1
    for size in sizes:
        found *= size
    return found


@st.composite
def expand(draw: Draw) -> Drawn:
    shapes = draw(mutually_broadcastable_shapes(num_shapes=2, min_dims=1, max_dims=4, max_side=4))
    x, result = numbers(draw, *shapes.input_shapes[0]), list(shapes.result_shape)
    missing = len(result) - x.dim()
    keep = [a >= missing and x.shape[a - missing] == size and draw(st.booleans()) for a, size in enumerate(result)]
    return Drawn(aten.expand.default, (x, [-1 if kept else size for kept, size in zip(keep, result, strict=True)]))


# ---- parts -----------------------------------------------------------------------------------------------------------


@st.composite
def select(draw: Draw) -> Drawn:
    x = numbers(draw, *shape(draw, 2))
    dim = axis(draw, x.dim())
    return Drawn(aten.select.int, (x, dim, axis(draw, x.shape[dim])))


@st.composite
def slice_(draw: Draw) -> Drawn:
    x = numbers(draw, *shape(draw))
    dim = axis(draw, x.dim())
    size = x.shape[dim]
    start = draw(st.one_of(st.none(), st.integers(-size - 1, size - 1)))
    first = range(size)[slice(start, None)][0]
    end = draw(st.one_of(st.none(), st.just(2**63 - 1), st.integers(first + 1, size + 1)))
    step = draw(st.sampled_from([(), (), (1,), (2,)]))
    return Drawn(aten.slice.Tensor, (x, dim, start, end, *step))


@st.composite
def narrow(draw: Draw) -> Drawn:
    x = numbers(draw, *shape(draw))
    dim = axis(draw, x.dim())
    start = draw(st.integers(0, x.shape[dim] - 1))
    length = draw(st.integers(1, x.shape[dim] - start))
    return Drawn(aten.narrow.default, (x, dim, start - draw(st.sampled_from([0, x.shape[dim]])), length))


SPLITS: dict[str, Callable[[Draw, int], Any]] = {
    "unbind.int": lambda draw, size: None,
    "chunk.default": lambda draw, size: draw(st.integers(1, 3)),
    "unsafe_chunk.default": lambda draw, size: draw(st.integers(1, 3)),
    "split.Tensor": lambda draw, size: draw(st.integers(1, size)),
    "unsafe_split.Tensor": lambda draw, size: draw(st.integers(1, size)),
    "split_with_sizes.default": lambda draw, size: [1, size - 1] if size > 1 else [1],
    "unsafe_split_with_sizes.default": lambda draw, size: [1, size - 1] if size > 1 else [1],
    "tensor_split.sections": lambda draw, size: draw(st.integers(1, size)),
}


@st.composite
def item(draw: Draw) -> Drawn:
    name, overload = draw(st.sampled_from(sorted(SPLITS))).split(".")
    x = numbers(draw, *shape(draw, 2))
    dim = axis(draw, x.dim())
    given = SPLITS[f"{name}.{overload}"](draw, x.shape[dim])
    target = getattr(getattr(aten, name), overload)
    args = (x, dim) if given is None else (x, given, dim)
    return Drawn(target, args, item=axis(draw, len(target(*args))))


def joined(name: str) -> Draw:
    @st.composite
    def drawn(draw: Draw) -> Drawn:
        sizes = shape(draw)
        many = draw(st.integers(1, 3))
        tensors = []
        dim = axis(draw, len(sizes) + (name == "stack"))
        for _ in range(many):
            if name != "stack":
                sizes[dim] = draw(SIDE)
            tensors.append(numbers(draw, *sizes))
        if name != "stack" and draw(st.booleans()):
            tensors.insert(0, numbers(draw, 0))  # an empty tensor may have any rank
        return Drawn(getattr(aten, name).default, (tensors, dim))

    return drawn


# ---- what is touched alone -------------------------------------------------------------------------------------------


@st.composite
def size(draw: Draw) -> Drawn:
    x = numbers(draw, *shape(draw))
    return Drawn(aten.sym_size.int, (x, axis(draw, x.dim())))


def fresh(name: str) -> Draw:
    @st.composite
    def drawn(draw: Draw) -> Drawn:
        value = [2.0] if name == "new_full" else []
        return Drawn(
            getattr(aten, name).default,
            (numbers(draw, *shape(draw)), shape(draw), *value),
            only_shape=name == "new_empty",
        )

    return drawn


def cast(name: str) -> Draw:
    @st.composite
    def drawn(draw: Draw) -> Drawn:
        x = numbers(draw, *shape(draw))
        if name == "to" and draw(st.booleans()):
            return Drawn(aten.to.dtype, (x, torch.float32))
        other = numbers(draw, *shape(draw)).to(draw(st.sampled_from([torch.float32, torch.float64])))
        return Drawn(aten.to.other if name == "to" else aten.type_as.default, (x, other))

    return drawn
