"""Cleans an exported graph in place: contexts inlined, assertions and dead code gone; still one flat graph."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, TypeGuard

import torch
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node

Context = tuple[Any, ...]
"""("autocast", device type, dtype, enabled) or ("grad", enabled)."""

_ASSERTIONS = ("aten::_assert", "aten::sym_constrain_range", "aten::_functional_assert", "aten::_functional_sym_con")
_SIZES = {torch.ops.aten.sym_size.int, torch.ops.aten.sym_stride.int, torch.ops.aten.sym_numel.default}


def clean(module: GraphModule) -> None:
    """Inlines autocast and no-grad regions (each node remembers them in ``meta["contexts"]``, outermost first)
    and drops assertions, slices of everything, and dead nodes. In-place and random nodes stay: they act even when
    nobody reads them."""
    _inline_contexts(module, module.graph)
    for node in reversed(module.graph.nodes):
        if node.target is torch.ops.aten.slice.Tensor and _takes_all(node):
            node.replace_all_uses_with(node.args[0])
        elif node.target is torch.ops.aten.slice.Tensor and node.args[2:3] == (None,):
            node.update_arg(2, 0)
        if not node.users and node.op not in ("placeholder", "output") and not acts(node.target):
            module.graph.erase_node(node)


def is_size(node: Node) -> bool:
    """A symbolic size or arithmetic on such: it belongs to no module, and is worked out wherever it is needed."""
    value = node.meta.get("val")
    if not isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)) or node.op != "call_function":
        return False
    return node.target in _SIZES or not isinstance(node.target, OpOverload)


def is_tensor(value: Any) -> TypeGuard[torch.Tensor]:
    return isinstance(value, torch.Tensor)


def _takes_all(node: Node) -> bool:
    """``x[:]`` along one dimension."""
    bounds = [*node.args[2:], None, None, 1][:3] if len(node.args) < 5 else [*node.args[2:]]
    return bounds[0] in (None, 0) and bounds[1] in (None, sys.maxsize) and bounds[2] in (None, 1)


@cache
def acts(target: Any) -> bool:
    """Whether an operator does more than return a value: it writes to a tensor or draws random numbers."""
    if not isinstance(target, OpOverload):
        return False
    if str(target._schema.name).startswith(_ASSERTIONS):
        return False
    return target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags


def _inline_contexts(module: GraphModule, graph: Graph) -> None:
    for node in list(graph.nodes):
        context = _context(node)
        if context is None:
            continue
        at = next(i for i, arg in enumerate(node.args) if isinstance(arg, Node) and arg.op == "get_attr")
        inner = getattr(module, node.args[at].target)
        _inline_contexts(inner, inner.graph)
        arguments = iter(node.args[at + 1 :])
        env: dict[Node, Any] = {}
        results: Any = ()
        with graph.inserting_before(node):
            for step in inner.graph.nodes:
                if step.op == "placeholder":
                    env[step] = next(arguments)
                elif step.op == "output":
                    results = torch.fx.map_arg(step.args[0], env.__getitem__)
                else:
                    copied = graph.node_copy(step, env.__getitem__)
                    copied.meta["contexts"] = (context, *step.meta.get("contexts", ()))
                    env[step] = copied
        for user in list(node.users):
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)


def _context(node: Node) -> Context | None:
    if node.target is torch.ops.higher_order.wrap_with_autocast:
        return ("autocast", *node.args[:3])  # not the fourth: the exporter turns the cache off for itself
    if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
        return ("grad", node.args[0])
    return None
