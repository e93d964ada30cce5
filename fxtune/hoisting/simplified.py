"""A graph of operators in a form that the laws can follow further."""

from __future__ import annotations

import copy

import torch
from torch import fx

from fxtune.hoisting.call import op_of, shape_of
from fxtune.hoisting.layout import VIEWING
from fxtune.hoisting.part import written
from fxtune.vocabulary import RESHAPING

aten = torch.ops.aten


def simplified(graph: fx.Graph) -> fx.Graph:
    """A copy that computes the same: maps of merged rows keep their axes apart, and `view` is written as `reshape`."""
    graph = copy.deepcopy(graph)
    for node in graph.nodes:
        if op_of(node) in ("addmm", "mm") and not node.kwargs:
            *bias, rows, weight = node.args
            for back in list(node.users) if isinstance(rows, fx.Node) and op_of(rows) in RESHAPING else []:
                if op_of(back) in RESHAPING and _same_but_last(rows.all_input_nodes[0], rows, back):
                    _apart(graph, back, rows.all_input_nodes[0], weight, bias)
    for node in reversed(graph.nodes):
        if op_of(node) in VIEWING:
            node.target = aten.reshape.default
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)
    return graph


def _same_but_last(x: fx.Node, rows: fx.Node, back: fx.Node) -> bool:
    before, merged, after = ([*map(written, shape_of(node))] for node in (x, rows, back))
    return before[:-1] == after[:-1] and before[-1] == merged[-1] and len(before) > 1


def _apart(graph: fx.Graph, back: fx.Node, x: fx.Node, weight: object, bias: list[object]) -> None:
    """Writes ``view(view(x) W + b)`` as ``x W + b``, where x and the result have the same axes but the last one."""
    with graph.inserting_before(back):
        made = graph.call_function(aten.matmul.default, (x, weight))  # type: ignore[arg-type]
        made.meta = dict(back.meta)
        if bias:
            made = graph.call_function(aten.add.Tensor, (made, bias[0]))  # type: ignore[arg-type]
            made.meta = dict(back.meta)
    back.replace_all_uses_with(made)
