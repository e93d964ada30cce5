"""A tuner between an operation and its weights."""

from __future__ import annotations

import operator

from torch import Tensor, fx
from torch.func import functional_call

from fxtune.matching import WeightLayout
from fxtune.planning import InWeights
from fxtune.rewriting.growing import Growing


def tune_weights(edit: InWeights, tuner: str, growing: Growing) -> None:
    """Lets the operation compute with what the tuner makes of its weight and bias, tuned already or not."""
    node = growing.operation(edit.node)
    prefix = f"{growing.original(edit.node).target}." if growing.original(edit.node).op == "call_module" else ""
    own = {name: _own(edit.node, name, prefix, node, growing) for name in (edit.weight, edit.bias) if name is not None}
    weight, bias = (own.get(name) if name is not None else None for name in (edit.weight, edit.bias))
    if weight is not None:
        weight = growing.before(node, out_by_in, (weight, edit.layout))
    pair = growing.before(node, tuner, (weight, bias))
    tuned: dict[str, fx.Node] = {}
    if edit.weight is not None:
        flat = growing.before(node, operator.getitem, (pair, 0))
        tuned[edit.weight] = growing.before(node, as_stored, (flat, own[edit.weight], edit.layout))
    if edit.bias is not None:
        tuned[edit.bias] = growing.before(node, operator.getitem, (pair, 1))
    if prefix:
        _call_with(edit.node, tuned, growing)
    else:
        for name, value in tuned.items():
            _read_instead(node, own[name], value)
    growing.weights.update({(edit.node, name): value for name, value in tuned.items()})


def _own(operation: str, name: str, prefix: str, node: fx.Node, growing: Growing) -> fx.Node:
    """A weight of an operation as it is now: as an earlier tuner left it, else the model's."""
    tuned = growing.weights.get((operation, name))
    return growing.state(node, f"{prefix}{name}") if tuned is None else tuned


def _call_with(operation: str, tuned: dict[str, fx.Node], growing: Growing) -> None:
    node = growing.operation(operation)
    if node.target is functional_call:
        node.update_arg(1, {**node.args[1], **tuned})  # type: ignore[dict-item]
        return
    module = growing.state(node, str(node.target))
    called = growing.before(node, functional_call, (module, dict(tuned), tuple(node.args)), dict(node.kwargs))
    growing.compute(operation, called)


def _read_instead(node: fx.Node, weight: fx.Node, tuned: fx.Node) -> None:
    """The operation's chain of casts and transposes to its weight begins at the tuned one."""
    same = [weight] if weight.op != "get_attr" else [n for n in node.graph.nodes if n.target == weight.target]
    for stored in same:
        for reader in [n for n in stored.users if n.target is not out_by_in and n.target is not as_stored]:
            if reader is node or _leads_only(reader, node):
                reader.replace_input_with(stored, tuned)


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
