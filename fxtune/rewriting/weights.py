"""A tuner between an operation and its weights."""

from __future__ import annotations

import operator
from collections.abc import Mapping

from torch import Tensor, fx, nn
from torch.func import functional_call

from fxtune.errors import PlanError
from fxtune.matching import WeightLayout
from fxtune.planning import InWeights
from fxtune.rewriting.growing import Growing

BIAS = "bias"
"""What operators and modules call theirs; a tuner may give one to an operation that has none."""


def tune_weights(edit: InWeights, tuner: str, growing: Growing) -> None:
    """Lets the operation compute with what the tuner makes of its weight and bias, tuned already or not."""
    node, original = growing.operation(edit.node), growing.original(edit.node)
    prefix = f"{original.target}." if original.op == "call_module" else ""
    weight = _now(edit.node, edit.weight, prefix, growing)
    bias = _bias(edit, prefix, growing)
    flat = weight if weight is None else growing.before(node, out_by_in, (weight, edit.layout))
    pair = growing.before(node, tuner, (flat, bias))
    tuned: dict[str, fx.Node] = {}
    if edit.weight is not None:
        changed = growing.before(node, operator.getitem, (pair, 0))
        tuned[edit.weight] = growing.before(node, as_stored, (changed, weight, edit.layout))
    tuned[edit.bias or BIAS] = growing.before(node, operator.getitem, (pair, 1))
    if prefix:
        _call_with(edit.node, tuned, growing)
    else:
        _read_with(node, edit, {edit.weight: weight, edit.bias: bias}, tuned, growing)
    growing.weights.update({(edit.node, name): value for name, value in tuned.items()})


def _now(operation: str, name: str | None, prefix: str, growing: Growing) -> fx.Node | None:
    """A weight of an operation: as an earlier tuner left it, else the model's own."""
    if name is None:
        return None
    tuned = growing.weights.get((operation, name))
    return growing.state(growing.operation(operation), f"{prefix}{name}") if tuned is None else tuned


def _bias(edit: InWeights, prefix: str, growing: Growing) -> fx.Node | None:
    """The bias of an operation, likewise; None where it has none."""
    if edit.computed is not None:
        return _argument(growing.operation(edit.node), edit.computed)
    if edit.bias is None:
        return growing.weights.get((edit.node, BIAS))
    return _now(edit.node, edit.bias, prefix, growing)


def _call_with(operation: str, tuned: dict[str, fx.Node], growing: Growing) -> None:
    node = growing.operation(operation)
    if node.target is with_weights:
        node.update_arg(1, {**node.args[1], **tuned})  # type: ignore[dict-item]
        return
    module = growing.state(node, str(node.target))
    called = growing.before(node, with_weights, (module, dict(tuned), tuple(node.args)), dict(node.kwargs))
    growing.compute(operation, called)


def _read_with(
    node: fx.Node,
    edit: InWeights,
    now: dict[str | None, fx.Node | None],
    tuned: dict[str, fx.Node],
    growing: Growing,
) -> None:
    """A call of an operator reads the tuned tensors."""
    for name, value in tuned.items():
        if (weight := now.get(name)) is not None:
            _read_instead(node, weight, value)
    if edit.bias is None:
        _give_bias(node, edit.computed or BIAS, tuned[BIAS], growing)


def _give_bias(node: fx.Node, name: str, bias: fx.Node, growing: Growing) -> None:
    place = _place(node, name)
    if place is None:
        growing.before(node, no_bias, (bias, str(node.target)))
    elif place < len(node.args):
        node.update_arg(place, bias)
    else:
        node.update_kwarg(name, bias)


def _argument(node: fx.Node, name: str) -> fx.Node:
    """What an operator is given under a name of its schema."""
    place = _place(node, name)
    given = node.args[place] if place is not None and place < len(node.args) else node.kwargs[name]
    assert isinstance(given, fx.Node)
    return given


def _place(node: fx.Node, name: str) -> int | None:
    """The position of an operator's argument; None where it has none of this name."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    return names.index(name) if name in names else None


def _read_instead(node: fx.Node, weight: fx.Node, tuned: fx.Node) -> None:
    """The operation's chain of casts and transposes to its weight begins at the tuned one."""
    same = [weight] if weight.op != "get_attr" else [n for n in node.graph.nodes if n.target == weight.target]
    for stored in same:
        for reader in [n for n in stored.users if n.target is not out_by_in and n.target is not as_stored]:
            if reader is node or _leads_only(reader, node):
                reader.replace_input_with(stored, tuned)


def _leads_only(reader: fx.Node, node: fx.Node) -> bool:
    return len(reader.users) == 1 and (node in reader.users or _leads_only(next(iter(reader.users)), node))


def with_weights(
    module: nn.Module, weights: Mapping[str, Tensor | None], args: tuple[Tensor, ...], **kwargs: object
) -> Tensor:
    """The module's result, computed with these weights instead of its own; with None it does without one."""
    result: Tensor = functional_call(module, dict(weights), args, kwargs)  # type: ignore[arg-type]
    return result


def no_bias(bias: Tensor | None, operation: str) -> None:
    """Refuses a bias for an operator that takes none."""
    if bias is not None:
        raise PlanError(
            f"a tuner gives a bias to `{operation}`, which takes none",
            fix="choose other sites (`where:`), or the unbound form",
        )


def out_by_in(weight: Tensor, layout: WeightLayout) -> Tensor:
    """A linear map's weight as D x D_in; any other as it is."""
    if layout == "in x out":
        return weight.mT
    return weight.flatten(1) if layout == "convolution" and weight[0, 0].numel() == 1 else weight


def as_stored(weight: Tensor, stored: Tensor, layout: WeightLayout) -> Tensor:
    """The way back, to the shape of `stored`."""
    return weight.mT if layout == "in x out" else weight.reshape(stored.shape)
