"""A call written as the operators that it runs."""

from __future__ import annotations

from torch import fx

from fxtune.hoisting.tracing import operands


def unfold(node: fx.Node, body: fx.Graph) -> None:
    """Puts the operators of `body` in the place of a call; those of a module read the module's own weights."""
    graph = node.graph
    stack = {name: value for name, value in node.meta.items() if name not in ("val", "body")}
    made = dict(zip(body.find_nodes(op="placeholder"), operands(node), strict=True))
    with graph.inserting_before(node):
        for inner in body.nodes:
            if inner.op in ("placeholder", "output"):
                continue
            copied = graph.node_copy(inner, made.__getitem__)
            if inner.op == "get_attr":
                copied.target = f"{node.target}.{inner.target}"
            copied.meta = {**stack, "val": inner.meta.get("val")}
            made[inner] = copied
    node.replace_all_uses_with(made[body.output_node().args[0]])
    graph.erase_node(node)
