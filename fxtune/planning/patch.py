"""A rewrite, before it is done: data that can be printed, carried out or dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fxtune.errors import PlanError
from fxtune.matching import NearMiss, Site
from fxtune.planning.bypass import BypassPlan
from fxtune.planning.edits import Edit
from fxtune.planning.folds import Folding
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
class Place:
    """Where a tuner stands, in any graph of the model.

    Attributes:
        rule: number of the rule that asked for it; None for a bypass, likewise the others.
        kind: of the site.
        path: module path of the site.
    """

    rule: int | None = None
    kind: str = ""
    path: str = ""


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
    """All that a call of `apply` changes in one graph.

    Attributes:
        rules: what each rule came to.
        trained: names of the model's own weights that train.
        seed: of new weights.
        blocks: module paths of the Blocks.
        bypass: what runs beside all of it.
        folding: which of the tuners can go into weights.
    """

    rules: tuple[RulePlan, ...]
    trained: tuple[str, ...] = ()
    seed: int | None = None
    blocks: tuple[str, ...] = field(default=())
    bypass: BypassPlan | None = None
    folding: Folding = field(default_factory=Folding)

    @property
    def insertions(self) -> list[Insertion]:
        """Every insertion, in the order in which it is made."""
        return [insertion for rule in self.rules for insertion in rule.insertions]

    @property
    def places(self) -> dict[str, Place]:
        """Where each tuner, and the bypass, stands: by its module path."""
        found = {i.path: Place(i.rule, i.site.kind, i.site.path) for i in self.insertions}
        return {**found, **({self.bypass.path: Place()} if self.bypass else {})}

    def only(self, places: Mapping[str, Place]) -> Patch:
        """The same with these tuners alone.

        Raises:
            PlanError: one of them would stand elsewhere, or nowhere.
        """
        if odd := [path for path, place in places.items() if self.places.get(path) != place]:
            raise PlanError(
                "the rules find other sites than they did at first",
                found=f"{len(odd)} tuners would stand elsewhere, `{odd[0]}` first",
                fix="keep rules that make a bias apart from rules that go on operations with a bias (`where:`)",
            )
        rules = [replace(rule, insertions=tuple(i for i in rule.insertions if i.path in places)) for rule in self.rules]
        bypass = self.bypass if self.bypass and self.bypass.path in places else None
        return replace(self, rules=tuple(rules), bypass=bypass)

    @property
    def paths(self) -> list[str]:
        """Module path of each tuner, and of the bypass."""
        return [*(insertion.path for insertion in self.insertions), *([self.bypass.path] if self.bypass else [])]

    def __str__(self) -> str:
        changes = [*self.insertions, *([self.bypass] if self.bypass else [])]
        return "\n".join(map(str, changes)) or "nothing changes"
