"""Splicing a detached bypass in."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxtune.planning import BypassPlan, Level, Stem, Tuner
from fxtune.rewriting.growing import Changes
from fxtune.rewriting.handing import hand_out
from fxtune.rewriting.layout import from_map, from_tokens, to_map, to_tokens
from fxtune.tracing import Region
from fxtune.tuners import ChannelMap, GatedSplice, Mix, Placement, Widened, build, drawn


class _Drawing:
    """Makes parts with new weights; each draws from a generator of its own."""

    def __init__(self, seed: int | None, dtype: torch.dtype, device: torch.device | str) -> None:
        self._seeds = None if seed is None else itertools.count(seed)
        self._kind: dict[str, Any] = {"dtype": dtype, "device": device}

    def part(self, make: Callable[[], nn.Module]) -> nn.Module:
        return drawn(make, seed=self._seed(), **self._kind)

    def tuner(self, tuner: Tuner, place: Placement) -> nn.Module:
        return build(tuner.name, tuner.settings, place, method=tuner.method, seed=self._seed(), **self._kind)

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

    Its levels are graphs too, each ``(x_(l-1)', x_l) -> x_l'``, with a mask behind where a tuner reads it. Kept for the
    backward pass are its inputs alone: then the chain of x_l' is computed again, and each level once more when its turn
    comes. (To keep the chain, too, would take as much again as the stems do; to keep each level's own activations
    several times that.)

    Args:
        plan: what it consists of.
        seed: for its weights; each part draws from a generator of its own.
        dtype: of its weights.
        device: of its weights.
    """
    drawing = _Drawing(seed, dtype, device)
    graph = fx.Graph()
    value = graph.placeholder("x_0")
    inputs = {id(stem): graph.placeholder(f"x_{i}") for i, stem in enumerate(plan.stems[1:], 1)}
    masks = {mask: graph.placeholder(f"mask_{i}") for i, mask in enumerate(plan.masks)}
    children: dict[str, nn.Module] = {}
    if plan.reduced:
        children["start"] = drawing.part(lambda: nn.Linear(plan.start.width, plan.levels[0].width_below))
        value = _by_tokens(graph, "start", value, plan.start)
    below = plan.start
    levels: list[Region] = []
    for i, level in enumerate(plan.levels):
        levels.append(_level(level, below, plan, drawing))
        given = (value, inputs[id(level.stem)], *([masks[level.mask]] if level.mask else []))
        value = graph.call_module(f"levels.{i}", given)
        below = level.stem
    children["levels"] = nn.ModuleList(levels)
    if plan.reduced:
        last = plan.levels[-1]
        children["end"] = drawing.part(lambda: Widened(last.place.width, last.stem.width))
        value = _by_tokens(graph, "end", value, last.stem)
    if plan.splice == "gated":
        # Its last stem need not be x_L.
        output = graph.placeholder("x")
        children["gate"] = drawing.part(GatedSplice)
        value = graph.call_module("gate", (output, value))
    graph.output(value)
    return _region("Bypass", graph, children)


def _by_tokens(graph: fx.Graph, part: str, x: fx.Node, like: Stem) -> fx.Node:
    """What a part makes of the tokens of a value, in the value's own layout."""
    if like.tokens:
        return graph.call_module(part, (x,))
    made = graph.call_module(part, (_tokens(graph, x, like.axis),))
    return graph.call_function(from_tokens, (made, x, like.axis))


def splice(plan: BypassPlan, bypass: Region, changes: Changes) -> None:
    """Lets the bypass read its stems, detached, and the tail read its result."""
    growing = changes.region(plan.region)
    growing.tuners()["bypass"] = bypass
    *stems, output = hand_out([*plan.stems, *plan.masks, plan.output], changes)
    if plan.splice == "gated":
        stems.append(output)
    readers = list(output.users)
    detached = [growing.once_behind(stem, torch.ops.aten.detach.default) for stem in stems]
    behind = max((*detached, output))
    result = growing.behind(behind, plan.target, tuple(detached))
    _tell(bypass, plan, [node.meta.get("val") for node in detached])
    growing.replace(plan.output.tap.node, readers, result)
    growing.drop(output)  # where it is no stem, the sites behind the last one are for nothing
    _keep_still(plan, changes)
    _detach_inputs(plan, changes)


def _tell(bypass: Region, plan: BypassPlan, vals: Sequence[object]) -> None:
    """Notes at the nodes what is known of their values: each level gives what has the shape of its stem."""
    inputs = bypass.graph.find_nodes(op="placeholder")
    for node, val in zip(inputs, vals, strict=True):
        node.meta["val"] = val
    calls = [node for node in bypass.graph.find_nodes(op="call_module") if str(node.target).startswith("levels.")]
    below = _of_width(vals[0], plan.start, plan.levels[0].width_below)
    for node, level in zip(calls, plan.levels, strict=True):
        region = bypass.get_submodule(str(node.target))
        assert isinstance(region, Region)
        given = [below, *(argument.meta["val"] for argument in node.all_input_nodes[1:])]
        for taken, val in zip(region.graph.find_nodes(op="placeholder"), given, strict=True):
            taken.meta["val"] = val
        below = node.meta["val"] = _of_width(given[1], level.stem, level.place.width)


def _of_width(val: object, stem: Stem, width: int) -> object:
    if not isinstance(val, Tensor) or val.shape[stem.axis] == width:
        return val
    return val.new_empty([width if axis == stem.axis else size for axis, size in enumerate(val.shape)])


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


def _level(level: Level, below: Stem, plan: BypassPlan, drawing: _Drawing) -> Region:
    graph, children = fx.Graph(), dict(_parts(level, plan, drawing))
    before, stem = graph.placeholder("below"), graph.placeholder("stem")
    mask = None if level.mask is None else graph.placeholder("mask")

    def tuned(side: str, x: fx.Node) -> fx.Node:
        given = (x,) if mask is None or not level.tuners[side].masked else (x, mask)
        return graph.call_module(side, given)

    if level.resize is not None:
        before = graph.call_function(resized, (before, stem, below.axis, level.stem.axis, level.resize))
    h = stem if level.stem.tokens else _tokens(graph, stem, level.stem.axis)
    if "reduce" in children:
        h = graph.call_module("reduce", (h,))
    if "horizontal" in children:
        h = graph.call_function(operator.add, (h, tuned("horizontal", h)))
    if level.between:
        v = tuned("vertical", before)
    else:
        v = before if below.tokens else _tokens(graph, before, below.axis)
        if "transition" in children:
            v = graph.call_module("transition", (v,))
        if "vertical" in children:
            v = graph.call_function(operator.add, (v, tuned("vertical", v)))
    result = graph.call_module("mix", (h, v))
    axis, on_map = level.stem.axis, "mixed" in children and level.tuners["mixed"].method == "on_map"
    if "mixed" in children and not on_map:
        result = graph.call_function(operator.add, (result, tuned("mixed", result)))
    if not level.stem.tokens:
        result = graph.call_function(from_tokens, (result, stem, axis))
    if on_map:
        branch = graph.call_module("mixed", (graph.call_function(to_map, (result, axis)),))
        result = graph.call_function(operator.add, (result, graph.call_function(from_map, (branch, axis))))
    graph.output(result)
    return _region("Level", graph, children)


def _tokens(graph: fx.Graph, x: fx.Node, axis: int) -> fx.Node:
    """A map as tokens that lie token by token: sums of tensors that lie alike take a fraction of the time of others."""
    return graph.call_function(torch.ops.aten.contiguous.default, (graph.call_function(to_tokens, (x, axis)),))


def _parts(level: Level, plan: BypassPlan, drawing: _Drawing) -> Iterator[tuple[str, nn.Module]]:
    wide, narrow = level.width_in, level.place.width
    if wide is not None:
        yield "transition", drawing.part(lambda: ChannelMap(wide, narrow, plan.transition))
    if plan.reduced:
        yield "reduce", drawing.part(lambda: nn.Linear(level.stem.width, narrow))
    for side, tuner in level.tuners.items():
        yield side, drawing.tuner(tuner, level.place)
    yield "mix", drawing.part(lambda: Mix(plan.temperature))


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
