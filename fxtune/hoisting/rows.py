"""Linear maps that merge all axes but the last one into rows, and part them again: the same map keeps them apart."""

from __future__ import annotations

import torch
from torch import fx

from fxtune.hoisting.call import op_of, shape_of
from fxtune.hoisting.part import written
from fxtune.vocabulary import RESHAPING

aten = torch.ops.aten


def keep_rows_apart(graph: fx.Graph) -> fx.Graph:
    """Writes ``view(view(x) W + b)`` as ``x W + b`` where x and the result have the same axes, the last one aside."""
    for node in graph.nodes:
        if op_of(node) in ("addmm", "mm") and not node.kwargs:
            *bias, rows, weight = node.args
            for back in list(node.users) if isinstance(rows, fx.Node) and op_of(rows) in RESHAPING else []:
                if op_of(back) in RESHAPING and _same_but_last(rows.all_input_nodes[0], rows, back):
                    _write(graph, back, rows.all_input_nodes[0], weight, bias)
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)
    return graph


def _same_but_last(x: fx.Node, rows: fx.Node, back: fx.Node) -> bool:
    before, merged, after = ([*map(written, shape_of(node))] for node in (x, rows, back))
    return before[:-1] == after[:-1] and before[-1] == merged[-1] and len(before) > 1


def _write(graph: fx.Graph, back: fx.Node, x: fx.Node, weight: object, bias: list[object]) -> None:
    with graph.inserting_before(back):
        made = graph.call_function(aten.matmul.default, (x, weight))  # type: ignore[arg-type]
        made.meta = dict(back.meta)
        if bias:
            made = graph.call_function(aten.add.Tensor, (made, bias[0]))  # type: ignore[arg-type]
            made.meta = dict(back.meta)
    back.replace_all_uses_with(made)
