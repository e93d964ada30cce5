"""A rewrite, before it is done: data that can be printed, carried out or dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fxtune.matching import NearMiss, Site
from fxtune.tuners import Placement


@dataclass(frozen=True)
class Source:
    """What a tuner reads, at the place where it goes.

    Attributes:
        node: fx node of the region that holds the value.
        axis: its channel axis.
        rank: its number of axes.
        copied: whether a later in-place operation overwrites the value, so that a copy must be taken when it is
            computed.
    """

    node: str
    axis: int
    rank: int
    copied: bool


@dataclass(frozen=True)
class Insertion:
    """One tuner beside one operation: ``output + tuner(source)`` (Res-Tuning, Eq. 7).

    Attributes:
        region: module path of the graph that changes.
        label: the tuner's name in the region's `tuners`.
        tuner: its registered name.
        settings: its settings.
        place: what it is told of its place.
        source: what it reads.
        output: fx node of the region whose value the tuner is added to.
        axis: that value's channel axis.
        rank: its number of axes.
        site: the site.
        rule: number of the rule that asked for it, over all rule sets.
    """

    region: str
    label: str
    tuner: str
    settings: Mapping[str, Any]
    place: Placement
    source: Source
    output: str
    axis: int
    rank: int
    site: Site
    rule: int

    @property
    def path(self) -> str:
        """Module path of the tuner; `tuners` is one component of it."""
        return ".".join(part for part in (self.region, "tuners", self.label) if part)

    def __str__(self) -> str:
        copied = ", copied before it is overwritten" if self.source.copied else ""
        settings = ", ".join(f"{k}={v}" for k, v in self.settings.items())
        return f"{self.region or '<root>'}: {self.output} += {self.tuner}({settings})({self.source.node}{copied})"


@dataclass(frozen=True)
class RulePlan:
    """What one rule came to.

    Attributes:
        text: the rule in a line.
        insertions: its tuners.
        skipped: why it did nothing, or None.
        near_misses: where its pattern nearly matched.
        notes: what people should know.
    """

    text: str
    insertions: tuple[Insertion, ...]
    skipped: str | None = None
    near_misses: tuple[NearMiss, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Patch:
    """All that a call of `apply` changes in one graph."""

    rules: tuple[RulePlan, ...]
    trained: tuple[str, ...] = ()
    seed: int | None = None
    blocks: tuple[str, ...] = field(default=())

    @property
    def insertions(self) -> list[Insertion]:
        """Every insertion, in the order in which it is made."""
        return [insertion for rule in self.rules for insertion in rule.insertions]

    def __str__(self) -> str:
        return "\n".join(map(str, self.insertions)) or "nothing changes"
