"""The names that the canonical view gives to ATen operators.

An operator is either *quiet* (it moves, casts or drops numbers; an edge of the view runs through it) or a node of the
view under the name that the field uses for it. Names that stand in no table below keep their ATen name without the
trailing ``_``.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


LAYOUT = _names(
    """
    view reshape _unsafe_view view_as reshape_as view_copy permute transpose t mT mH adjoint numpy_T movedim moveaxis
    swapaxes swapdims unsqueeze squeeze expand expand_as contiguous flatten unflatten ravel roll repeat_interleave alias
    """
)
"""Operators that rearrange a value and compute nothing."""

RESHAPING = _names("view reshape _unsafe_view flatten unflatten")
"""Those of them that keep the numbers in their order."""

CAST = _names("to _to_copy type_as clone float half bfloat16 double lift_fresh lift_fresh_copy detach_copy")
"""Operators that copy a value or change its dtype."""

DROPOUT = _names("dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout")
"""Random operators that are the identity in eval mode."""

RANDOM = _names("bernoulli rand rand_like randn randn_like uniform normal randint")
"""Operators whose result is noise, whatever they are given."""

PART = _names("select slice narrow chunk split split_with_sizes tensor_split unbind unsafe_chunk unsafe_split")
"""Operators that take a part of a value; all become ``part``."""

RESIZING = _names("slice narrow pad constant_pad_nd")
"""Operators that do nothing where the size stays as it was."""

RENAMED = {
    "addmm": "linear",
    "mm": "matmul",
    "bmm": "matmul",
    "baddbmm": "matmul",
    "_softmax": "softmax",
    "_safe_softmax": "softmax",
    "scaled_dot_product_attention": "sdpa",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "native_batch_norm": "batch_norm",
    "_native_batch_norm_legit": "batch_norm",
    "cudnn_batch_norm": "batch_norm",
    "_fused_rms_norm": "rms_norm",
    "conv1d": "conv",
    "conv2d": "conv",
    "conv3d": "conv",
    "convolution": "conv",
    "concat": "cat",
    "concatenate": "cat",
    "stack": "cat",
    "true_divide": "div",
    "divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "swish": "silu",
    "__and__": "and",
    "__or__": "or",
}

COMMUTATIVE = frozenset({"add", "mul", "and", "or"})
"""Operators whose first two operands a pattern may name in either order."""


def base_name(target: object) -> str:
    """The ATen name of an operator without overload and in-place mark: ``aten.add_.Tensor`` is ``add``."""
    packet = getattr(target, "_opname", None) or getattr(target, "__name__", str(target))
    name = str(packet)
    return name if name.startswith("__") else name.rstrip("_")
