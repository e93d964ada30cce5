"""A rewrite, before it is done: data that can be printed, carried out or dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fxtune.matching import NearMiss, Site
from fxtune.planning.bypass import BypassPlan
from fxtune.planning.edits import Edit
from fxtune.tuners import Placement


@dataclass(frozen=True)
class Insertion:
    """One tuner at one site.

    Attributes:
        region: module path of the graph that holds the tuner and changes.
        label: the tuner's name in the region's `tuners`.
        tuner: its registered name.
        settings: its settings.
        place: what it is told of its place.
        edit: how it changes the graph.
        site: the site.
        rule: number of the rule that asked for it, over all rule sets.
    """

    region: str
    label: str
    tuner: str
    settings: Mapping[str, Any]
    place: Placement
    edit: Edit
    site: Site
    rule: int

    @property
    def path(self) -> str:
        """Module path of the tuner; `tuners` is one component of it."""
        return ".".join(part for part in (self.region, "tuners", self.label) if part)

    @property
    def target(self) -> str:
        """The tuner as its region calls it."""
        return f"tuners.{self.label}"

    def __str__(self) -> str:
        settings = ", ".join(f"{k}={v}" for k, v in self.settings.items())
        return f"{self.region or '<root>'}: {self.edit.told(f'{self.tuner}({settings})')}"


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
    bypass: BypassPlan | None = None

    @property
    def insertions(self) -> list[Insertion]:
        """Every insertion, in the order in which it is made."""
        return [insertion for rule in self.rules for insertion in rule.insertions]

    @property
    def paths(self) -> list[str]:
        """Module path of each tuner, and of the bypass."""
        return [*(insertion.path for insertion in self.insertions), *([self.bypass.path] if self.bypass else [])]

    def __str__(self) -> str:
        changes = [*self.insertions, *([self.bypass] if self.bypass else [])]
        return "\n".join(map(str, changes)) or "nothing changes"
