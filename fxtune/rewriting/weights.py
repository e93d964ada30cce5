"""A tuner between an operation and its weights."""

from __future__ import annotations

import operator

from torch import Tensor, fx
from torch.func import functional_call

from fxtune.matching import WeightLayout
from fxtune.planning import InWeights
from fxtune.rewriting.growing import Growing


def tune_weights(edit: InWeights, tuner: str, growing: Growing) -> None:
    """Lets the operation compute with what the tuner makes of its weight and bias."""
    node = growing.original(edit.node)
    prefix = f"{node.target}." if node.op == "call_module" else ""
    own = {name: None if name is None else growing.state(node, f"{prefix}{name}") for name in (edit.weight, edit.bias)}
    weight, bias = own[edit.weight], own[edit.bias]
    if weight is not None:
        weight = growing.before(node, out_by_in, (weight, edit.layout))
    pair = growing.before(node, tuner, (weight, bias))
    tuned: dict[str, fx.Node] = {}
    if edit.weight is not None:
        flat = growing.before(node, operator.getitem, (pair, 0))
        tuned[edit.weight] = growing.before(node, as_stored, (flat, own[edit.weight], edit.layout))
    if edit.bias is not None:
        tuned[edit.bias] = growing.before(node, operator.getitem, (pair, 1))
    if node.op == "call_module":
        _call_with(node, tuned, growing)
    else:
        _read_instead(node, tuned, growing)


def _call_with(node: fx.Node, tuned: dict[str, fx.Node], growing: Growing) -> None:
    module = growing.state(node, str(node.target))
    called = growing.before(node, functional_call, (module, dict(tuned), tuple(node.args)), dict(node.kwargs))
    readers = list(node.users)
    growing.replace(node.name, readers, called)
    growing.drop(node)


def _read_instead(node: fx.Node, tuned: dict[str, fx.Node], growing: Growing) -> None:
    """The operation's chain of casts and transposes to its weight begins at the tuned one."""
    for name, value in tuned.items():
        for stored in [n for n in growing.graph.nodes if n.op == "get_attr" and n.target == name]:
            for reader in [n for n in stored.users if n.target is not out_by_in and n.target is not as_stored]:
                if reader is node or _leads_only(reader, node):
                    reader.replace_input_with(stored, value)


def _leads_only(reader: fx.Node, node: fx.Node) -> bool:
    return len(reader.users) == 1 and (node in reader.users or _leads_only(next(iter(reader.users)), node))


def out_by_in(weight: Tensor, layout: WeightLayout) -> Tensor:
    """A linear map's weight as D x D_in; any other as it is."""
    if layout == "in x out":
        return weight.mT
    return weight.flatten(1) if layout == "convolution" and weight[0, 0].numel() == 1 else weight


def as_stored(weight: Tensor, stored: Tensor, layout: WeightLayout) -> Tensor:
    """The way back, to the shape of `stored`."""
    return weight.mT if layout == "in x out" else weight.reshape(stored.shape)
