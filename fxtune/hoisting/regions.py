"""What a node of a captured graph runs: other graphs, called with its arguments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import fx, nn

from fxtune.tracing import ByMode


def called_regions(node: fx.Node, owner: nn.Module) -> list[fx.GraphModule]:
    """The regions that a node runs: one; or two, of which the mode chooses; or none."""
    if node.op != "call_module":
        return []
    module = owner.get_submodule(str(node.target))
    if isinstance(module, ByMode):
        return [module.in_training, module.in_evaluation]
    return [module] if isinstance(module, fx.GraphModule) else []


def runs(node: fx.Node, owner: nn.Module) -> Iterator[tuple[fx.Graph, nn.Module]]:
    """The graphs that the call of a module runs, so far as they are known, and the modules that they belong to."""
    regions = called_regions(node, owner)
    yield from ((region.graph, region) for region in regions)
    if not regions and (body := node.meta.get("body")) is not None:
        yield body, owner.get_submodule(str(node.target))


def walk_regions(root: fx.GraphModule) -> Iterator[fx.GraphModule]:
    """A captured model's regions, each once, callers first."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        region = waiting.pop(0)
        if id(region) not in seen:
            seen.add(id(region))
            yield region
            waiting += [inner for node in region.graph.nodes for inner in called_regions(node, region)]


def count_calls(root: fx.GraphModule) -> Counter[int]:
    """How often each region is called in the graphs, by id."""
    return Counter(
        id(inner)
        for region in walk_regions(root)
        for node in region.graph.nodes
        for inner in called_regions(node, region)
    )
