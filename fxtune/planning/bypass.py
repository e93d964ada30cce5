"""A detached bypass, before it is spliced in: data that can be printed, carried out or dropped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fxtune.matching import Site
from fxtune.rules import Splice, Transition
from fxtune.tuners import Placement
from fxtune.view import Tap

__all__ = ["BypassPlan", "Level", "Resize", "Splice", "Stem", "Transition", "Tuner"]

Resize = Literal["average", "nearest"]
"""To fewer positions by adaptive averages, to more by the nearest one."""


@dataclass(frozen=True)
class Stem:
    """A value of the trunk that the bypass reads, detached: x_l.

    Attributes:
        tap: where it is read.
        out: from there to the region of the bypass, the calls by which regions hand it out: each the calling region
            and the fx node of the call.
        into: the calls by which regions then take it in, likewise.
        axis: its channel axis.
        rank: its number of axes.
        copied: whether it is overwritten later, so that a copy must be taken when it is computed.
        width: its channels.
    """

    tap: Tap
    out: tuple[Tap, ...]
    into: tuple[Tap, ...]
    axis: int
    rank: int
    copied: bool
    width: int

    @property
    def tokens(self) -> bool:
        """Whether it is B x N x D as it stands."""
        return self.rank == 3 and self.axis == 2


@dataclass(frozen=True)
class Tuner:
    """A tuner of a level.

    Attributes:
        name: its name.
        settings: its settings.
        method: of its class: `forward` on tokens, `on_map` on maps, or `between` in the place of ``V(T(x_(l-1)'))``.
        masked: whether it is given the mask, where there is one.
    """

    name: str
    settings: Mapping[str, Any]
    method: str
    masked: bool


@dataclass(frozen=True)
class Level:
    """One mix of the bypass: ``M(λ H(x_l) + (1 - λ) V(T(x_(l-1)')))``.

    Attributes:
        site: whose output x_l is.
        stem: x_l.
        tuners: what stands on each side.
        place: what they are told of their place; its width is that of the bypass here.
        mask: of the unit's attention, for tuners that read it; else None.
        resize: how T changes the positions, None where they stay.
        width_in: channels of what comes from the level before, where T maps them; else None.
    """

    site: Site
    stem: Stem
    tuners: Mapping[str, Tuner]
    place: Placement
    mask: Stem | None
    resize: Resize | None
    width_in: int | None

    @property
    def between(self) -> bool:
        """Whether one tuner is all that leads here from the level before."""
        return "vertical" in self.tuners and self.tuners["vertical"].method == "between"

    @property
    def width_below(self) -> int:
        """Channels of the level before."""
        return self.place.width_in if self.between else self.width_in or self.place.width


@dataclass(frozen=True)
class BypassPlan:
    """A bypass and where it goes.

    Attributes:
        text: it in a line.
        region: module path of the region that it runs in.
        start: x_0.
        reduced: whether it runs at a smaller width than its stems.
        temperature: τ of each mix.
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
    reduced: bool
    temperature: float
    levels: tuple[Level, ...]
    output: Stem
    transition: Transition
    splice: Splice
    still: tuple[Tap, ...]
    inputs: Mapping[str, tuple[str, ...]]
    trunk: frozenset[int] = field(repr=False)

    @property
    def stems(self) -> tuple[Stem, ...]:
        """x_0 to x_L."""
        return self.start, *(level.stem for level in self.levels)

    @property
    def masks(self) -> tuple[Stem, ...]:
        """The masks that its levels are given, each once."""
        return tuple(dict.fromkeys(level.mask for level in self.levels if level.mask is not None))

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
