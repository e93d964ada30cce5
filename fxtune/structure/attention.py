"""Attention that is written out, as the one operation that it is.

``softmax(scale · q kᵀ + mask) v`` is the operator that computes the same. Where its parts have other readers, too, they
are nodes of their own beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxtune.structure.attributes import given
from fxtune.structure.constants import says_nothing
from fxtune.structure.layout import Way, tensors_of, way_to
from fxtune.view import Value, View


@dataclass(frozen=True)
class Core:
    """The operands of an attention: value ids.

    Attributes:
        q: queries, B x heads x N x d, without their factor.
        k: keys, turned: B x heads x d x S.
        v: values.
        mask: what is added to the logits, None where nothing is.
        scale: factor on the logits.
    """

    q: int
    k: int
    v: int
    mask: int | None
    scale: float


def core_at(view: View, id: int, constants: dict[int, Tensor]) -> Core | None:
    """The attention whose result the product at `id` is; None where it is none."""
    if not _is(view, id, "matmul"):
        return None
    weights, v = tensors_of(view.values[id])[:2]
    softmax = _plain_source(view, weights)
    if softmax is None or not _is(view, softmax, "softmax") or not _over_last_axis(view.values[softmax]):
        return None
    mask, scale = None, 1.0
    logits = _plain_source(view, tensors_of(view.values[softmax])[0])
    if logits is not None and _is(view, logits, "add"):
        summed, added = _product_first(view, tensors_of(view.values[logits]))
        nothing = added.id in constants and says_nothing(constants[added.id])
        mask, logits = None if nothing else added.id, _plain_source(view, summed)
    if logits is not None and _is(view, logits, "scale"):
        scale, logits = _factor(view, logits), _plain_source(view, tensors_of(view.values[logits])[0])
    if logits is None or not _is(view, logits, "matmul"):
        return None
    q, k = tensors_of(view.values[logits])[:2]
    factor = _plain_source(view, q)
    if factor is not None and _is(view, factor, "scale"):
        scale, q = scale * _factor(view, factor), tensors_of(view.values[factor])[0]
    return Core(q.id, k.id, v.id, mask, scale) if scale == scale else None


def _is(view: View, id: int, op: str) -> bool:
    value = view.values[id]
    if id not in view.graph or view.op(id) != op or len(value.shape) < 3:
        return False
    operands = len(tensors_of(value))
    return operands == {"matmul": 2, "add": 2, "scale": 1, "softmax": 1}[op] and "alpha" not in value.kwargs


def _plain_source(view: View, value: Value) -> int | None:
    """What computed a value, where no layout is between."""
    way: Way = way_to(view, value.id)
    return None if way.steps else way.source


def _product_first(view: View, operands: list[Value]) -> tuple[Value, Value]:
    """Of the two operands of a sum the logits, and what is added to them."""
    one, other = operands
    leads = _plain_source(view, one)
    if leads is not None and (_is(view, leads, "matmul") or _is(view, leads, "scale")):
        return one, other
    return other, one


def _over_last_axis(softmax: Value) -> bool:
    dim = given(softmax).get("dim")
    return isinstance(dim, int) and dim % len(softmax.shape) == len(softmax.shape) - 1


def _factor(view: View, id: int) -> float:
    """The number of a `scale`; not a number where it is not known."""
    factor = view.attrs(id).get("factor")
    return float(factor) if isinstance(factor, int | float) else float(torch.nan)
