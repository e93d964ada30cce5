"""The trunk of a bypass: all that leads to the last site's output. Nothing of it may follow from that output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property

import torch
from torch import fx

from fxtune.errors import PlanError
from fxtune.matching import Sites
from fxtune.planning.bypass import BypassPlan
from fxtune.planning.patch import Insertion
from fxtune.planning.place import Places
from fxtune.view import Tap, Value, View


class Trunk:
    """What a bypass must not touch.

    Args:
        sites: the model's sites.
        output: value id of x_L, for which the result of the bypass stands.
        where: where the bypass was written.

    Raises:
        PlanError: the result would flow back into the trunk, or nowhere.
    """

    def __init__(self, sites: Sites, output: int, where: str) -> None:
        self.view, self.output = sites.view, output
        self._check_tail(where)
        self._check_flow(sites.in_blocks(), where)

    def __contains__(self, value: int) -> bool:
        return value in self.values

    @cached_property
    def values(self) -> frozenset[int]:
        """Ids of the values that x_L is made of, itself too."""
        return self._reached(lambda value: (source.id for source in self.view.values[value].inputs()))

    @cached_property
    def _tail(self) -> frozenset[int]:
        return self._reached(lambda value: self.view.readers.get(value, ())) - {self.output}

    def _reached(self, steps: Callable[[int], Iterable[int]]) -> frozenset[int]:
        found, pending = {self.output}, [self.output]
        while pending:
            new = set(steps(pending.pop())) - found
            found |= new
            pending += new
        return frozenset(found)

    def still(self, places: Places) -> tuple[Tap, ...]:
        """The calls of modules that compute the trunk and nothing else; regions are no such modules."""
        calls: dict[Tap, list[Value]] = {}
        for value in self.view.values:
            for tap in value.taps[:1]:
                calls.setdefault(tap, []).append(value)
        by_module: dict[tuple[str, str], list[Tap]] = {}
        for tap in calls:
            node = places.node(tap)
            if node.op == "call_module":
                by_module.setdefault((tap.region, str(node.target)), []).append(tap)
        return tuple(
            tap
            for taps in by_module.values()
            if all(value.id in self.values for tap in taps for value in calls[tap])
            for tap in taps
        )

    def inputs(self, places: Places) -> Mapping[str, tuple[str, ...]]:
        """The model's floating inputs by fx node, with the nodes that read them for the trunk."""
        found: dict[str, tuple[str, ...]] = {}
        for value in self.view.values:
            if value.op == "input" and isinstance(value.val, torch.Tensor) and value.val.is_floating_point():
                node = places.node(value.taps[0])
                readers = tuple(user.name for user in node.users if self._for_the_trunk(user))
                if readers:
                    found[node.name] = readers
        return found

    def _for_the_trunk(self, reader: fx.Node) -> bool:
        computed = self.view.tapped.get(Tap("", reader.name), [])
        return reader.op != "output" and (not computed or any(value in self.values for value in computed))

    def _check_tail(self, where: str) -> None:
        if not {self.output, *self._tail}.intersection(self.view.returned):
            raise PlanError(
                "a bypass has no tail to be spliced into",
                found=f"nothing that the model returns is computed from {self.view.values[self.output].place()}",
                where=where,
                fix="run it along other sites (`along:`)",
            )

    def _check_flow(self, in_blocks: Iterable[int], where: str) -> None:
        back = sorted(self._tail.intersection(in_blocks))
        if back:
            raise PlanError(
                "the result of a bypass would flow back into the trunk",
                found=f"it stands for {self.view.values[self.output].place()}, from which "
                f"{self.view.values[back[0]].place()} is computed, inside a Block",
                where=where,
                fix="run it along whole units of the network (`along: block`)",
            )


def check_reached(view: View, bypass: BypassPlan, insertions: Iterable[Insertion], trained: Iterable[str]) -> None:
    """No gradient comes into the trunk of a bypass, so nothing there can be asked to train.

    Raises:
        PlanError: a tuner, or a weight that is to train, is used in the trunk only.
    """
    for insertion in insertions:
        if insertion.site.output.value in bypass.trunk:
            raise _unreached(f"{insertion.tuner} cannot train at `{insertion.site.path}`")
    weights = {str(value.target): value.id for value in view.values if value.op == "param"}
    for name in trained:
        readers = view.readers.get(weights.get(name, -1), [])
        if readers and all(reader in bypass.trunk for reader in readers):
            raise _unreached(f"`{name}` cannot train")


def _unreached(asked: str) -> PlanError:
    return PlanError(
        f"{asked} beside a bypass",
        found="it lies in the trunk, into which no gradient comes: a bypass reads the trunk detached",
        fix="take it out of the rules, or leave the bypass out",
    )
