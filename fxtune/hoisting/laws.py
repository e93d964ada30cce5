"""The law of each operator: how a part of its result is computed from parts of its operands.

A law is a function of a call and a part of its result. It gives the call that computes this part, on parts of the
operands and with literals changed where they must be, or None where no part of the operands does. Every law is exact
algebra: the numbers are the same, up to the rounding of products of another size, and up to which random numbers fall
to which element.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from fxtune.hoisting import axes, layout, parts, products
from fxtune.hoisting.axes import Law, along
from fxtune.hoisting.call import Call, Moved, Touch, op_of
from fxtune.hoisting.elementwise import cast, elementwise
from fxtune.hoisting.part import Part


def size(call: Call, part: Part) -> Moved | None:
    """One size of a tensor: any part will do that has the whole axis."""
    dim = call.axis()
    return None if dim is None else call.moved({"self": Touch(call.operand("self"), frozenset({dim}))})


def fresh(call: Call, part: Part) -> Moved | None:
    """A new tensor, of which the operand gives the dtype alone."""
    return None if part else call.moved({"self": Touch(call.operand("self"))})


def _names(law: Law, names: str) -> Iterator[tuple[str, Law]]:
    return ((name, law) for name in names.split())


DETACH = dict(_names(elementwise, "detach detach_copy"))
"""Where autograd is cut. Through it a part moves only when asked for: what is before it may be shared by others."""

LAWS: dict[str, Law] = {
    **dict(
        _names(
            elementwise,
            """
            add sub mul div rsub true_divide divide multiply subtract neg reciprocal pow square sqrt rsqrt exp exp2
            expm1 log log2 log1p abs sign sin cos tanh sigmoid relu relu6 gelu silu elu selu celu mish softplus
            hardswish hardsigmoid hardtanh leaky_relu log_sigmoid erf clamp clamp_min clamp_max maximum minimum where
            masked_fill lerp addcmul addcdiv round floor ceil floor_divide remainder eq ne lt le gt ge isnan isinf
            logical_not logical_and logical_or bitwise_not bitwise_and bitwise_or __and__ __or__ and or logaddexp
            clone contiguous _to_copy alias nan_to_num
            zeros_like ones_like full_like dropout alpha_dropout
            """,
        )
    ),
    **dict(_names(cast, "to type_as")),
    **dict(_names(products.linear, "linear")),
    **dict(_names(products.matmul, "matmul mm bmm")),
    **dict(_names(products.addmm, "addmm baddbmm")),
    **dict(_names(products.attention, "scaled_dot_product_attention")),
    **dict(_names(products.convolution, "conv1d conv2d conv3d")),
    **dict(_names(products.embedding, "embedding")),
    **dict(_names(along(axes.normalised, "input"), "layer_norm rms_norm")),
    **dict(_names(along(axes.batch_only, "input"), "group_norm")),
    **dict(_names(along(axes.mixing_dim), "softmax _softmax log_softmax _log_softmax cumsum glu")),
    **dict(_names(along(axes.mixing_dims), "flip")),
    **dict(
        _names(
            along(axes.reduced), "mean sum amax amin prod logsumexp var std argmax argmin any all linalg_vector_norm"
        )
    ),
    **dict(_names(along(axes.permuted), "permute")),
    **dict(_names(along(axes.transposed), "transpose swapaxes swapdims")),
    **dict(_names(along(axes.last_two), "t mT")),
    **dict(_names(along(axes.reversed_axes), "numpy_T")),
    **dict(_names(along(axes.moved_axes), "movedim moveaxis")),
    **dict(_names(along(axes.unsqueezed), "unsqueeze")),
    **dict(_names(layout.squeezed, "squeeze")),
    **dict(_names(layout.regrouped, "view reshape _unsafe_view view_copy flatten unflatten")),
    **dict(_names(layout.expanded, "expand")),
    **dict(_names(parts.select, "select")),
    **dict(_names(parts.slice, "slice")),
    **dict(_names(parts.narrow, "narrow")),
    **dict(_names(parts.item, "getitem")),
    **dict(_names(parts.cat, "cat concat concatenate")),
    **dict(_names(parts.stack, "stack")),
    **dict(_names(size, "sym_size")),
    **dict(_names(fresh, "new_empty new_zeros new_ones new_full")),
}


def law_of(node: fx.Node, *, through_detach: bool) -> Law | None:
    """The law of what a node calls, if there is one."""
    name = op_of(node)
    return LAWS.get(name) or (DETACH.get(name) if through_detach else None)
