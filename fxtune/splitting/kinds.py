"""What a node of a flat graph gives: a tensor, or something that is worked out from tensors at hand."""

from __future__ import annotations

import operator

import torch
from torch import fx

from fxtune.rewriting import to_tokens
from fxtune.vocabulary import LAYOUT, PART, base_name

_REARRANGING = (LAYOUT | {"detach"}) - {"repeat_interleave"}


def is_tensor(node: fx.Node) -> bool:
    """Whether a node's value is one tensor. Sizes, devices and dtypes are none, nor are tuples of tensors."""
    if node.op != "call_function":
        return node.op == "placeholder" or not _is_taken_apart(node)
    if isinstance(node.target, torch._ops.OpOverload):
        returned = node.target._schema.returns
        return len(returned) == 1 and str(returned[0].type) == "Tensor"
    if node.target in (getattr, torch.finfo):
        return False
    return any(is_tensor(operand) or node.target is operator.getitem for operand in node.all_input_nodes)


def only_rearranges(node: fx.Node) -> bool:
    """Whether a node has the numbers of its one operand, in another order or shape: they need not be kept twice."""
    return len([n for n in node.all_input_nodes if is_tensor(n)]) == 1 and (
        node.target is to_tokens or _is_one_of(node, _REARRANGING)
    )


def takes_part(node: fx.Node) -> bool:
    """Whether a node has some of the numbers of its one operand."""
    return is_tensor(node) and _is_one_of(node, PART)


def whole(node: fx.Node) -> fx.Node:
    """The value of which a node has some or all of the numbers, copied or not."""
    while only_rearranges(node) or takes_part(node) or _is_one_of(node, frozenset({"clone"})):
        node = next(operand for operand in node.all_input_nodes if is_tensor(operand))
    return node


def _is_one_of(node: fx.Node, names: frozenset[str]) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and base_name(node.target) in names


def _is_taken_apart(node: fx.Node) -> bool:
    return bool(node.users) and all(user.target is operator.getitem for user in node.users)
