"""A folded module's call, written as the operators that it runs."""

from __future__ import annotations

import copy

from torch import fx

from fxtune.hoisting.rows import keep_rows_apart


def unfold(node: fx.Node) -> None:
    """Puts a leaf's operators in the place of its call; they read the module's own weights."""
    graph, body = node.graph, keep_rows_apart(copy.deepcopy(node.meta["body"]))
    made = dict(zip(body.find_nodes(op="placeholder"), node.args, strict=True))
    with graph.inserting_before(node):
        for inner in body.nodes:
            if inner.op in ("placeholder", "output"):
                continue
            copied = graph.node_copy(inner, made.__getitem__)
            if inner.op == "get_attr":
                copied.target = f"{node.target}.{inner.target}"
            stack = {name: value for name, value in node.meta.items() if name not in ("val", "body")}
            copied.meta = {**stack, "val": inner.meta.get("val")}
            made[inner] = copied
    node.replace_all_uses_with(made[body.output_node().args[0]])
    graph.erase_node(node)
