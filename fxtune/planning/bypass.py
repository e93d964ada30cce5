"""A detached bypass, before it is spliced in: data that can be printed, carried out or dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fxtune.matching import Site
from fxtune.rules import Splice, Transition
from fxtune.tuners import Placement
from fxtune.view import Tap

__all__ = ["BypassPlan", "Level", "Resize", "Splice", "Stem", "Transition"]

Resize = Literal["average", "nearest"]
"""To fewer positions by adaptive averages, to more by the nearest one."""


@dataclass(frozen=True)
class Stem:
    """A value of the trunk that the bypass reads, detached: x_l.

    Attributes:
        tap: where it is read, in the region of the bypass or inside of it.
        calls: from there to the region of the bypass, the calls by which regions hand it out: each the calling region
            and the fx node of the call.
        axis: its channel axis.
        rank: its number of axes.
        copied: whether it is overwritten later, so that a copy must be taken when it is computed.
    """

    tap: Tap
    calls: tuple[Tap, ...]
    axis: int
    rank: int
    copied: bool

    @property
    def tokens(self) -> bool:
        """Whether it is B x N x D as it stands."""
        return self.rank == 3 and self.axis == 2


@dataclass(frozen=True)
class Level:
    """One mix of the bypass: ``λ H(x_l) + (1 - λ) V(T(x_(l-1)'))``.

    Attributes:
        site: whose output x_l is.
        stem: x_l.
        tuners: by side, `horizontal` or `vertical`: the name and the settings.
        place: what they are told of their place.
        resize: how T changes the positions, None where they stay.
        width_in: channels of what comes from the level before, where T maps them; else None.
    """

    site: Site
    stem: Stem
    tuners: Mapping[str, tuple[str, Mapping[str, Any]]]
    place: Placement
    resize: Resize | None
    width_in: int | None


@dataclass(frozen=True)
class BypassPlan:
    """A bypass and where it goes.

    Attributes:
        text: it in a line.
        region: module path of the region that it runs in.
        start: x_0.
        levels: its levels, in the order of computation.
        output: the last site's output x_L, in the region: what the result stands for.
        transition: how channels are mapped where the width changes.
        splice: how the result goes in.
        still: calls of modules that compute the trunk and nothing else: they stay in evaluation mode.
        inputs: fx nodes of the model's floating inputs, and who reads them for the trunk: they read them detached.
        trunk: ids of the values that x_L is made of, in the view.
    """

    text: str
    region: str
    start: Stem
    levels: tuple[Level, ...]
    output: Stem
    transition: Transition
    splice: Splice
    still: tuple[Tap, ...]
    inputs: Mapping[str, tuple[str, ...]]
    trunk: frozenset[int] = field(repr=False)

    @property
    def path(self) -> str:
        """Module path of the bypass; `tuners` is one component of it."""
        return ".".join(part for part in (self.region, self.target) if part)

    @property
    def target(self) -> str:
        """The bypass as its region calls it."""
        return "tuners.bypass"

    def __str__(self) -> str:
        return f"{self.region or '<root>'}: {self.text}; {self.output.tap.node} {_SPLICED[self.splice]} the result"


_SPLICED: Mapping[Splice, str] = {"replace": "is replaced by", "gated": "is moved towards"}
