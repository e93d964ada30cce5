"""Splicing a detached bypass in."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxtune.planning import BypassPlan, Level, Stem, Transition
from fxtune.rewriting.growing import Changes
from fxtune.rewriting.handing import hand_out
from fxtune.rewriting.layout import from_tokens, to_tokens
from fxtune.tracing import Region
from fxtune.tuners import ChannelMap, GatedSplice, Mix, Placement, build, drawn


class _Drawing:
    """Makes parts with new weights; each draws from a generator of its own."""

    def __init__(self, seed: int | None, dtype: torch.dtype, device: torch.device | str) -> None:
        self._seeds = None if seed is None else itertools.count(seed)
        self._kind: dict[str, Any] = {"dtype": dtype, "device": device}

    def part(self, make: Callable[[], nn.Module]) -> nn.Module:
        return drawn(make, seed=self._seed(), **self._kind)

    def tuner(self, name: str, settings: Mapping[str, Any], place: Placement) -> nn.Module:
        return build(name, settings, place, seed=self._seed(), **self._kind)

    def _seed(self) -> int | None:
        return None if self._seeds is None else next(self._seeds)


def build_bypass(
    plan: BypassPlan,
    *,
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Region:
    """The bypass as a graph of its own: x_0 to x_L, detached, to what stands for x_L.

    Its levels are graphs too, each ``(x_(l-1)', x_l) -> x_l'``. Kept for the backward pass are its inputs alone: then
    the chain of x_l' is computed again, and each level once more when its turn comes. (To keep the chain, too, would
    take as much again as the stems do; to keep each level's own activations several times that.)

    Args:
        plan: what it consists of.
        seed: for its weights; each part draws from a generator of its own.
        dtype: of its weights.
        device: of its weights.
    """
    drawing = _Drawing(seed, dtype, device)
    below = plan.start
    levels: list[Region] = []
    for level in plan.levels:
        levels.append(_level(level, below, plan.transition, drawing))
        below = level.stem
    graph = fx.Graph()
    value = graph.placeholder("x_0")
    stems = [graph.placeholder(f"x_{i}") for i in range(1, len(levels) + 1)]
    for i, stem in enumerate(stems):
        value = graph.call_module(f"levels.{i}", (value, stem))
    children: dict[str, nn.Module] = {"levels": nn.ModuleList(levels)}
    if plan.splice == "gated":
        # Its last stem need not be x_L.
        last = graph.placeholder("x")
        children["gate"] = drawing.part(GatedSplice)
        value = graph.call_module("gate", (last, value))
    graph.output(value)
    return _region("Bypass", graph, children)


def splice(plan: BypassPlan, bypass: Region, changes: Changes) -> None:
    """Lets the bypass read its stems, detached, and the tail read its result."""
    growing = changes.region(plan.region)
    growing.tuners()["bypass"] = bypass
    wanted = [plan.start, *(level.stem for level in plan.levels), plan.output]
    *stems, output = hand_out(wanted, changes)
    if plan.splice == "gated":
        stems.append(output)
    readers = list(output.users)
    detached = [growing.once_behind(stem, torch.ops.aten.detach.default) for stem in stems]
    behind = max((*detached, output))
    result = growing.behind(behind, plan.target, tuple(detached))
    _tell(bypass, [node.meta.get("val") for node in detached])
    growing.replace(plan.output.tap.node, readers, result)
    growing.drop(output)  # where it is no stem, the sites behind the last one are for nothing
    _keep_still(plan, changes)
    _detach_inputs(plan, changes)


def _tell(bypass: Region, vals: Sequence[object]) -> None:
    """Notes at the nodes what is known of their values: each level gives what has the shape of its stem."""
    inputs = bypass.graph.find_nodes(op="placeholder")
    levels = [node for node in bypass.graph.find_nodes(op="call_module") if str(node.target).startswith("levels.")]
    for node, val in zip(inputs, vals, strict=True):
        node.meta["val"] = val
    for node, below, stem in zip(levels, vals, vals[1:], strict=False):
        node.meta["val"] = stem
        level = bypass.get_submodule(str(node.target))
        assert isinstance(level, Region)
        for given, val in zip(level.graph.find_nodes(op="placeholder"), (below, stem), strict=True):
            given.meta["val"] = val


def _keep_still(plan: BypassPlan, changes: Changes) -> None:
    """The modules of the trunk are marked: whoever sets modes leaves them in evaluation mode."""
    for tap in plan.still:
        changes.region(tap.region).original(tap.node).meta["still"] = True


def _detach_inputs(plan: BypassPlan, changes: Changes) -> None:
    """An input that requires grad would make autograd record the trunk."""
    for name, readers in plan.inputs.items():
        root = changes.region("")
        given = root.original(name)
        detached = root.behind(given, torch.ops.aten.detach.default, (given,))
        detached.meta["val"] = given.meta.get("val")
        for reader in readers:
            root.operation(reader).replace_input_with(given, detached)


# ---- one level -------------------------------------------------------------------------------------------------------


def _level(level: Level, below: Stem, transition: Transition, drawing: _Drawing) -> Region:
    graph, children = fx.Graph(), dict(_parts(level, transition, drawing))
    before, stem = graph.placeholder("below"), graph.placeholder("stem")
    if level.resize is not None:
        before = graph.call_function(resized, (before, stem, below.axis, level.stem.axis, level.resize))
    v = before if below.tokens else _tokens(graph, before, below.axis)
    h = stem if level.stem.tokens else _tokens(graph, stem, level.stem.axis)
    if "transition" in children:
        v = graph.call_module("transition", (v,))
    if "horizontal" in children:
        h = graph.call_function(operator.add, (h, graph.call_module("horizontal", (h,))))
    if "vertical" in children:
        v = graph.call_function(operator.add, (v, graph.call_module("vertical", (v,))))
    result = graph.call_module("mix", (h, v))
    if not level.stem.tokens:
        result = graph.call_function(from_tokens, (result, stem, level.stem.axis))
    graph.output(result)
    return _region("Level", graph, children)


def _tokens(graph: fx.Graph, x: fx.Node, axis: int) -> fx.Node:
    """A map as tokens that lie token by token: sums of tensors that lie alike take a fraction of the time of others."""
    return graph.call_function(torch.ops.aten.contiguous.default, (graph.call_function(to_tokens, (x, axis)),))


def _parts(level: Level, transition: Transition, drawing: _Drawing) -> Iterator[tuple[str, nn.Module]]:
    if level.width_in is not None:
        wide, narrow = level.width_in, level.place.width
        yield "transition", drawing.part(lambda: ChannelMap(wide, narrow, transition))
    for side, (name, settings) in level.tuners.items():
        yield side, drawing.tuner(name, settings, level.place)
    yield "mix", drawing.part(Mix)


def _region(title: str, graph: fx.Graph, children: Mapping[str, nn.Module]) -> Region:
    home = nn.Module()
    for name, child in children.items():
        home.add_module(name, child)
    region = Region.restore(title, graph, dict(home.__dict__))
    region.recomputed = True
    return region


def resized(x: Tensor, like: Tensor, axis: int, axis_like: int, how: str) -> Tensor:
    """A map B x ... with its channels on `axis`, at the positions of `like`: adaptive averages, or the nearest ones."""
    height, width = like.movedim(axis_like, 1).shape[2:]
    channels_first = x.movedim(axis, 1)
    if how == "average":
        changed = F.adaptive_avg_pool2d(channels_first, (height, width))
    else:
        changed = F.interpolate(channels_first, size=(height, width), mode="nearest")
    return changed.movedim(1, axis)
