"""Which weights a gradient can reach, read from a captured graph."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn

from fxtune.tracing import ENTER, LEAVE, Region
from fxtune.view import Tap, Value, join, read_values


@dataclass(frozen=True)
class GradientReport:
    """The weights of a model, sorted by whether a gradient of its outputs can reach them.

    Attributes:
        trained: names of the weights that train, and are reached.
        passed: those that are reached and frozen: gradients go through their operations.
        unreached: those from which no differentiable path leads to an output; no memory is kept for them.
        lost: those that train although nothing reaches them. There are none unless `requires_grad` was set by hand.
    """

    trained: tuple[str, ...]
    passed: tuple[str, ...]
    unreached: tuple[str, ...]
    lost: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{len(self.trained)} tensors train",
            f"{len(self.passed)} frozen ones lie on a gradient's way",
            f"{len(self.unreached)} cannot be reached by a gradient",
        ]
        if self.lost:
            lines.append(f"{len(self.lost)} train and cannot be reached: {', '.join(self.lost)}")
        return "\n".join(lines)


def gradient_report(graph: Region) -> GradientReport:
    """What the graph says about each parameter.

    Every operator with floating inputs and outputs is taken for a differentiable one, save a detach and what runs
    without gradients.
    """
    parameters = dict(graph.named_parameters(remove_duplicate=False))
    reached = set(_reached(graph, parameters))
    # A tied weight is reached under all of its names.
    shared = {id(parameters[name]) for name in reached}
    names = [(name, weight.requires_grad, id(weight) in shared) for name, weight in graph.named_parameters()]
    return GradientReport(
        trained=tuple(name for name, trains, found in names if trains and found),
        passed=tuple(name for name, trains, found in names if found and not trains),
        unreached=tuple(name for name, trains, found in names if not found and not trains),
        lost=tuple(name for name, trains, found in names if trains and not found),
    )


def _reached(graph: Region, parameters: Collection[str]) -> Iterator[str]:
    """Names of parameters from which a differentiable path leads to an output."""
    _, returned = read_values(graph)
    silent = _Silent(graph)
    pending, seen = [value for value in returned if _floats(value)], set()
    while pending:
        value = pending.pop()
        if value.id in seen or value.op == "detach" or value in silent:
            continue
        seen.add(value.id)
        pending += [source for source in value.inputs() if _floats(source)]
        if (home := _weights(value)) is not None:
            yield from (name for name in parameters if name == home or name.startswith(f"{home}."))


def _weights(value: Value) -> str | None:
    """The name of the tensor that a value is, or the path of the module whose weights it is computed with."""
    if value.op == "opaque":
        return value.module
    # Where a tuner changes weights, its whole module is an operand, or that whose weights it changes.
    return str(value.target) if value.op in ("param", "buffer") else None


def _floats(value: Value) -> bool:
    """Whether a gradient can run through a value; what a tuner computes has no record, and is floating."""
    parts = value.val if isinstance(value.val, tuple | list) else [value.val]
    return value.val is None or any(isinstance(part, torch.Tensor) and part.is_floating_point() for part in parts)


class _Silent:
    """The values that are computed without gradients."""

    def __init__(self, graph: nn.Module) -> None:
        self._taps: set[Tap] = set()
        self._modules: set[str] = set()
        for path, region in graph.named_modules():
            if isinstance(region, Region):
                self._read(path, region.graph)

    def _read(self, path: str, graph: fx.Graph) -> None:
        enabled = [True]
        for node in graph.nodes:
            if node.target is ENTER["grad"]:
                enabled.append(bool(node.args[0]))
            elif node.target is ENTER["autocast"]:
                enabled.append(enabled[-1])
            elif node.target is LEAVE:
                enabled.pop()
            elif not enabled[-1]:
                self._taps.add(Tap(path, node.name))
                if node.op == "call_module":
                    self._modules.add(join(path, str(node.target)))

    def __contains__(self, value: Value) -> bool:
        inside = any(value.module == path or value.module.startswith(f"{path}.") for path in self._modules)
        return inside or (bool(value.taps) and value.taps[0] in self._taps)
