"""A tuner in the place of an attention core."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from fxtune.planning import Core
from fxtune.rewriting.growing import Growing


def in_the_softmax(edit: Core, tuner: str, growing: Growing, **more: object) -> None:
    """Lets the tuner compute what the core did, from the same operands; `more` are further keywords for it."""
    core = growing.current(edit.node)
    readers = list(core.users)
    q, k, v, mask, causal = _operands(edit, core, growing)
    options = {"causal": causal, "scale": edit.scale, "dropout": edit.dropout, **more}
    mixed = growing.behind(core, tuner, (q, k, v, mask), options)
    if edit.method == "attend":
        mixed = growing.behind(mixed, operator.getitem, (mixed, 0))  # the other item is λ, for whoever watches it
    if edit.product is not None:  # what reads a plain product may count on its memory
        mixed = growing.behind(mixed, torch.ops.aten.contiguous.default, (mixed,))
    growing.replace(edit.node, readers, mixed)
    growing.drop(core)


def _operands(edit: Core, core: fx.Node, growing: Growing) -> tuple[Any, Any, Any, Any, bool]:
    """Nodes of q, k, v and the mask (or None), and whether a causal mask stands beside it."""
    if edit.product is None:
        (q, k, v, *rest), named = _call(core)
        given = dict(zip(("attn_mask", "dropout_p", "is_causal"), rest, strict=False)) | named
        return q, k, v, given.get("attn_mask"), bool(given.get("is_causal", False))
    q, transposed = growing.current(edit.product).args[:2]
    k = growing.before(core, torch.ops.aten.transpose.int, (transposed, -2, -1))
    return q, k, core.args[1], _mask(edit, core, q, growing), False


def _call(core: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the fused operator; those of its call inside a module that differs by mode, from outside."""
    if core.op == "call_function":
        return core.args, dict(core.kwargs)
    body: fx.Graph = core.meta["body"]
    given = dict(zip((node for node in body.nodes if node.op == "placeholder"), core.args, strict=True))
    inner = next(node for node in body.nodes if node.op == "call_function")
    args, kwargs = fx.node.map_arg((inner.args, inner.kwargs), given.__getitem__)
    return args, kwargs


def _mask(edit: Core, core: fx.Node, q: Any, growing: Growing) -> fx.Node | None:
    """The sum of all that is added to the logits."""
    total = None
    for bias in edit.biases:
        node = growing.current(bias.node)
        if bias.groups is not None:
            node = growing.before(core, for_each_sample, (node, q, bias.groups))
        if bias.factor != 1.0:
            node = growing.before(core, operator.mul, (node, bias.factor))
        total = node if total is None else growing.before(core, operator.add, (total, node))
    return total


def for_each_sample(bias: torch.Tensor, q: torch.Tensor, groups: int) -> torch.Tensor:
    """A bias of logits B/G x G x H x N x S as one of B x H x N x S."""
    parted = bias[(None,) * (5 - bias.dim())]
    return parted.expand(q.shape[0] // groups, groups, *parted.shape[2:]).flatten(0, 1)
