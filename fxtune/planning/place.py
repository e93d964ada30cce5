"""Where in the nested graphs a tuner goes: the innermost region that computes the output and can read the input."""

from __future__ import annotations

from functools import cached_property

from torch import fx

from fxtune.errors import PlanError
from fxtune.matching import Port, Site
from fxtune.view import Tap, join


class Places:
    """Finds the fx nodes of a captured model by region and name."""

    def __init__(self, root: fx.GraphModule) -> None:
        self.root = root
        self._nodes: dict[str, dict[str, fx.Node]] = {}
        self._homes: dict[int, str] = {id(module): path for path, module in root.named_modules()}

    def home(self, region: str) -> str:
        """The first of the names under which a region stands in the model."""
        return self._homes[id(self.root.get_submodule(region))]

    def node(self, tap: Tap) -> fx.Node:
        """The node that a tap names."""
        if tap.region not in self._nodes:
            region = self.root.get_submodule(tap.region)
            assert isinstance(region, fx.GraphModule)
            self._nodes[tap.region] = {node.name: node for node in region.graph.nodes}
        return self._nodes[tap.region][tap.node]

    def inner(self, tap: Tap, reader: fx.Node) -> list[Tap] | None:
        """The placeholders by which a region that `reader` calls takes the tapped value in; None if it calls none."""
        region = self.root.get_submodule(tap.region)
        called = region.get_submodule(str(reader.target)) if reader.op == "call_module" else None
        if not isinstance(called, fx.GraphModule):
            return None
        path = join(tap.region, str(reader.target))
        placeholders = [node for node in called.graph.nodes if node.op == "placeholder"]
        given = self.node(tap)
        return [Tap(path, p.name) for p, argument in zip(placeholders, reader.args, strict=True) if argument is given]

    def callers(self, region: str) -> list[Tap]:
        """The calls of a region, in the one around it; none of the root."""
        parts = region.split(".") if region else []
        outer = next((o for n in range(len(parts) - 1, -1, -1) if (o := ".".join(parts[:n])) in self._regions), None)
        if outer is None:
            return []
        graph = self.root.get_submodule(outer).graph
        assert isinstance(graph, fx.Graph)
        called = (node for node in graph.nodes if node.op == "call_module")
        return [Tap(outer, node.name) for node in called if join(outer, str(node.target)) == region]

    def way(self, start: str, end: str) -> tuple[tuple[Tap, ...], tuple[Tap, ...]] | None:
        """The way of a value from one region to another: the calls that hand it out of `start`, from the innermost on,
        and those that then take it in. None where a region on the way is called more than once.
        """
        out, into = self._calls(start), self._calls(end)
        while out and into and out[-1] == into[-1]:
            out.pop()
            into.pop()
        if any(len(self.callers(join(call.region, str(self.node(call).target)))) != 1 for call in (*out, *into)):
            return None
        return tuple(out), tuple(reversed(into))

    def _calls(self, region: str) -> list[Tap]:
        """The first calls of a region and of those around it, the innermost first."""
        calls: list[Tap] = []
        while region:
            calls.append(self.callers(region)[0])
            region = calls[-1].region
        return calls

    @cached_property
    def _regions(self) -> set[str]:
        return {path for path, module in self.root.named_modules() if isinstance(module, fx.GraphModule)}

    def meeting(self, site: Site, source: Port, output: Port) -> tuple[Tap, Tap]:
        """Taps in one region: of what a tuner reads at a site, and of the output that it changes.

        The output may be taken further out than where it is computed as long as nothing reads it on the way.

        Raises:
            PlanError: no graph of the model has both values.
        """
        for tap in self.ways_out(output.taps):
            for other in source.taps:
                if other.region == tap.region and (other == tap or self.node(other) < self.node(tap)):
                    return other, tap
        raise PlanError(
            f"no graph of the model holds both what the {site.kind} at `{site.path}` reads and what it gives",
            found=f"reads {_list(source.taps)}; gives {_list(output.taps)}",
            fix="let the rule read the output (`reads: output`), or choose other sites (`where:`)",
        )

    def ways_out(self, taps: tuple[Tap, ...]) -> list[Tap]:
        """Where the value is computed, then each region that passes it on untouched."""
        found: list[Tap] = []
        for tap in taps:
            if self.node(tap).op == "placeholder":
                continue  # a later reader, not a maker
            if found and not self._only_returned(found[-1]):
                break
            found.append(tap)
        return found

    def _only_returned(self, tap: Tap) -> bool:
        return all(user.op == "output" for user in self.node(tap).users)


def _list(taps: tuple[Tap, ...]) -> str:
    return ", ".join(map(str, taps)) or "a value inside a folded module"
