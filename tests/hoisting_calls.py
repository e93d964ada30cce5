"""Calls of every operator that has a law, drawn by hypothesis: the tables here have the same names as the laws' own."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import mutually_broadcastable_shapes
from torch import Tensor

aten = torch.ops.aten
SIDE = st.sampled_from([2, 3, 4, 1])


@dataclass
class Drawn:
    """A call; with `item` the result is that item of what the operator returns."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    item: int | None = None
    only_shape: bool = False


Draw = Callable[..., Any]


def numbers(draw: Draw, *shape: int, whole: bool = False) -> Tensor:
    """Positive numbers, so that roots and logarithms are numbers, too."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    if whole:
        return torch.randint(0, 4, shape, generator=generator)
    return torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1


def shape(draw: Draw, least: int = 1, most: int = 4) -> list[int]:
    return draw(st.lists(SIDE, min_size=least, max_size=most))


def axis(draw: Draw, rank: int) -> int:
    return draw(st.integers(-rank, rank - 1))


def axes(draw: Draw, rank: int) -> list[int]:
    found = draw(st.lists(st.integers(0, rank - 1), min_size=1, max_size=rank, unique=True))
    return [axis - rank if draw(st.booleans()) else axis for axis in found]


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


NUMBER_BY_NUMBER = """
add sub mul div rsub true_divide divide multiply subtract neg reciprocal pow square sqrt rsqrt exp exp2 expm1 log log2
log1p abs sign sin cos tanh sigmoid relu relu6 gelu silu elu selu celu mish softplus hardswish hardsigmoid hardtanh
leaky_relu log_sigmoid erf clamp clamp_min clamp_max maximum minimum where masked_fill lerp addcmul addcdiv round floor
ceil floor_divide remainder eq ne lt le gt ge isnan isinf logical_not logical_and logical_or bitwise_not bitwise_and
bitwise_or __and__ __or__ and or logaddexp clone contiguous _to_copy alias nan_to_num zeros_like ones_like full_like
dropout alpha_dropout detach detach_copy
""".split()  # noqa: SIM905

CALLS: dict[str, Callable[[], st.SearchStrategy[Drawn]]] = {
    **{name: by_number(name) for name in NUMBER_BY_NUMBER},
    "linear": linear,
    **{name: product(name) for name in ("matmul", "mm", "bmm")},
    **{name: with_sum(name) for name in ("addmm", "baddbmm")},
    "scaled_dot_product_attention": attention,
    **{name: convolution(name) for name in ("conv1d", "conv2d", "conv3d")},
    "embedding": embedding,
    **{name: norm(name) for name in ("layer_norm", "rms_norm", "group_norm")},
    **{name: over_axis(name) for name in ("softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum", "glu")},
    "flip": flip,
    **{name: reduction(name) for name in REDUCTIONS},
    "permute": permute,
    **{name: swap(name) for name in ("transpose", "swapaxes", "swapdims")},
    "t": turned("t", (1, 2)),
    "mT": turned("mT", (2, 4)),
    "numpy_T": turned("numpy_T", (2, 2)),
    **{name: movedim(name) for name in ("movedim", "moveaxis")},
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    **{name: regrouped(name) for name in ("view", "reshape", "_unsafe_view", "view_copy", "flatten", "unflatten")},
    "expand": expand,
    "select": select,
    "slice": slice_,
    "narrow": narrow,
    "getitem": item,
    **{name: joined(name) for name in ("cat", "concat", "concatenate", "stack")},
    "sym_size": size,
    **{name: fresh(name) for name in ("new_empty", "new_zeros", "new_ones", "new_full")},
    **{name: cast(name) for name in ("to", "type_as")},
}
