"""Autocast and gradient contexts: a pair of marker nodes in a graph, a ``with`` block in the code generated from it."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.fx import Graph
from torch.fx.node import has_side_effect


def enter_autocast(device_type: str, dtype: torch.dtype | None, enabled: bool) -> Any:
    """Opens ``torch.autocast``; every node up to the matching ``leave`` runs under it."""
    context = torch.autocast(device_type, dtype, enabled)
    context.__enter__()  # type: ignore[no-untyped-call]
    return context


def enter_grad(enabled: bool) -> Any:
    """Opens ``torch.set_grad_enabled``; every node up to the matching ``leave`` runs under it."""
    context = torch.set_grad_enabled(enabled)
    context.__enter__()
    return context


def leave(context: Any) -> None:
    """Closes the context that a marker opened."""
    context.__exit__(None, None, None)


ENTER = {"autocast": has_side_effect(enter_autocast), "grad": has_side_effect(enter_grad)}
LEAVE = has_side_effect(leave)

_PREFIX = __name__.replace(".", "_")
_OPENS = re.compile(rf"\w+ = {_PREFIX}_enter_(autocast|grad)\((.*?)\)(;.*)?$")
_CLOSES = re.compile(rf"\w+ = {_PREFIX}_leave\(")
_WITH = {"autocast": "torch.autocast", "grad": "torch.set_grad_enabled"}


def new_graph() -> Graph:
    """An empty graph that shows contexts."""
    graph = Graph()
    show_contexts(graph)
    return graph


def show_contexts(graph: Graph) -> None:
    """Lets the graph's code show contexts as ``with`` blocks, so that an exception closes them too."""
    graph.on_generate_code(lambda _: _with_blocks)


def _with_blocks(body: list[str]) -> list[str]:
    if not any(_PREFIX in line for line in body):
        return body
    written: list[str] = []
    depth = 0
    for line in "".join(body).split("\n"):
        opens = _OPENS.match(line)
        if opens:
            written += [f"{'    ' * depth}with {_WITH[opens[1]]}({opens[2]}):\n"]
            depth += 1
            written += [f"{'    ' * depth}{opens[3].lstrip('; ')}\n" if opens[3] else ""]
        elif _CLOSES.match(line):
            if written[-1].rstrip().endswith(":"):
                written.append(f"{'    ' * depth}pass\n")
            depth -= 1
        else:
            written.append(f"{'    ' * depth}{line}\n" if line else "\n")
    return written
