"""Calls of every operator that has a law, drawn by hypothesis: the tables here have the same names as the laws' own."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from hoisting_drawing import Drawn
from hoisting_layouts import (
    cast,
    expand,
    fresh,
    item,
    joined,
    movedim,
    narrow,
    permute,
    regrouped,
    select,
    size,
    slice_,
    squeeze,
    swap,
    turned,
    unsqueeze,
)
from hoisting_numbers import (
    REDUCTIONS,
    attention,
    by_number,
    convolution,
    embedding,
    flip,
    linear,
    norm,
    over_axis,
    product,
    reduction,
    with_sum,
)

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
