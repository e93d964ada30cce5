"""What each edit does to a graph."""

from __future__ import annotations

import operator
from functools import singledispatch
from typing import Any

import torch
from torch import fx

from fxtune.planning import After, Beside, Core, Value
from fxtune.rewriting.growing import Growing
from fxtune.rewriting.layout import from_tokens, to_tokens


@singledispatch
def carry_out(edit: object, tuner: str, growing: Growing) -> None:
    """Changes a region's graph.

    Args:
        edit: what is to change.
        tuner: target of the tuner, a module of the region.
        growing: the region's graph.
    """
    raise TypeError(edit)


@carry_out.register
def _beside(edit: Beside, tuner: str, growing: Growing) -> None:
    before = growing.current(edit.output.node)
    readers = list(before.users)
    branch = _on_tokens(growing, before, tuner, _read(edit, growing), edit.source, edit.output)
    total = growing.behind(branch, operator.add, (before, branch))
    growing.replace(edit.output.node, readers, total)


def _read(edit: Beside, growing: Growing) -> fx.Node:
    """What the tuner reads: the operation's own output, or a value as the graph has it now, tuned or not."""
    if edit.source.node == edit.output.node:
        return growing.original(edit.source.node)
    return growing.copy_of(edit.source.node) if edit.source.copied else growing.current(edit.source.node)


@carry_out.register
def _after(edit: After, tuner: str, growing: Growing) -> None:
    before = growing.current(edit.output.node)
    readers = list(before.users)
    after = _on_tokens(growing, before, tuner, before, edit.output, edit.output)
    growing.replace(edit.output.node, readers, after)


@carry_out.register
def _core(edit: Core, tuner: str, growing: Growing) -> None:
    core = growing.current(edit.node)
    readers = list(core.users)
    q, k, v, mask, causal = _operands(edit, core, growing)
    options = {"causal": causal, "scale": edit.scale, "dropout": edit.dropout}
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
    product = growing.current(edit.product)
    q, transposed = product.args[:2]
    k = _just_before(core, growing, torch.ops.aten.transpose.int, (transposed, -2, -1))
    return q, k, core.args[1], _mask(edit, core, growing), False


def _call(core: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the fused operator; those of its call inside a module that differs by mode, from outside."""
    if core.op == "call_function":
        return core.args, dict(core.kwargs)
    body: fx.Graph = core.meta["body"]
    given = dict(zip((node for node in body.nodes if node.op == "placeholder"), core.args, strict=True))
    inner = next(node for node in body.nodes if node.op == "call_function")
    args, kwargs = fx.node.map_arg((inner.args, inner.kwargs), given.__getitem__)
    return args, kwargs


def _mask(edit: Core, core: fx.Node, growing: Growing) -> fx.Node | None:
    """The sum of all that is added to the logits."""
    total = None
    for bias in edit.biases:
        node = growing.current(bias.node)
        if bias.factor != 1.0:
            node = _just_before(core, growing, operator.mul, (node, bias.factor))
        total = node if total is None else _just_before(core, growing, operator.add, (total, node))
    return total


def _just_before(core: fx.Node, growing: Growing, target: object, args: tuple[object, ...]) -> fx.Node:
    with growing.graph.inserting_before(core):
        return growing.graph.call_function(target, args)  # type: ignore[arg-type]


def _on_tokens(growing: Growing, at: fx.Node, tuner: str, read: fx.Node, source: Value, output: Value) -> fx.Node:
    """The tuner on the tokens of what it reads, in the shape of the output, computed behind `at`."""
    plain = [value.rank == 3 and value.axis == 2 for value in (source, output)]
    like = growing.original(output.node)
    tokens = read if plain[0] else (at := growing.behind(at, to_tokens, (read, source.axis)))
    branch = growing.behind(at, tuner, (tokens,))
    return branch if all(plain) else growing.behind(branch, from_tokens, (branch, like, output.axis))
