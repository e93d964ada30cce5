"""The form of a detached bypass in a rule file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fxtune.rules.insert import Insert
from fxtune.rules.where import Where

Splice = Literal["replace", "gated"]
Transition = Literal["bottleneck", "linear"]
SIDES = ("horizontal", "vertical", "mixed")
"""Where a level can have tuners: on the stem, on what comes from the level before, on the mix of both."""


class Bypass(BaseModel):
    """A branch that runs beside the network, never back into it: ``M(λ H(x_l) + (1 - λ) V(x_b))``, a level a site."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    along: str | None = Field(
        default=None,
        min_length=1,
        description="a pattern; it runs beside its sites. Or `backbone`: beside the whole network before the head, as "
        "one site. Left out: as the model card says, else `block`",
    )
    stems: Where = Field(
        default=Where(),
        description="the sites whose outputs it reads (`blocks` counts the pattern's sites); it begins with the input "
        "of the first one. All when left out",
    )
    where: Where = Field(
        default=Where(), description="the stems that have tuners; the others only have their mix. All when left out"
    )
    horizontal: Insert | None = Field(default=None, description="a tuner on each stem; none when left out")
    vertical: Insert | None = Field(default=None, description="a tuner on what comes from the level before, likewise")
    mixed: Insert | None = Field(default=None, description="a tuner on the mix of both, likewise")
    reduce: Annotated[int, Field(ge=2, strict=True)] | None = Field(
        default=None,
        description="r: it runs at 1/r of the network's width. A linear map brings each stem there, and a norm and a "
        "linear map behind the last level bring the result back. At the full width when left out",
    )
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        default=1.0, description="τ of the mix: λ is the sigmoid of θ/τ"
    )
    splice: Splice | None = Field(
        default=None,
        description="`replace`: the result stands for the last site's output; `gated`: it joins that through a number "
        "that starts at zero. Left out: as the model card says, else `replace`",
    )
    transition: Transition | None = Field(
        default=None,
        description="how channels are mapped where the width changes: `bottleneck` (C to C/2 to the new width, GELU "
        "between) or `linear`. Left out: as the model card says, else `bottleneck`",
    )

    @property
    def tuners(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The tuners that it has: ``horizontal``, ``vertical``, ``mixed``, each ``{name: settings}``."""
        return {side: insert for side in SIDES if (insert := getattr(self, side)) is not None}

    def completed(
        self,
        *,
        along: str | None = None,
        paths: list[str] | None = None,
        splice: Splice | None = None,
        transition: Transition | None = None,
    ) -> Bypass:
        """With what is left open filled in: by these, else by the defaults.

        Args:
            along: the pattern.
            paths: globs over module paths of the stems; they hold only if the pattern is left open, too.
            splice: how it ends.
            transition: how channels are mapped.
        """
        stems = self.stems
        if self.along is None and stems.path is None and paths:
            stems = stems.model_copy(update={"path": paths})
        return self.model_copy(
            update={
                "along": self.along or along or "block",
                "stems": stems,
                "splice": self.splice or splice or "replace",
                "transition": self.transition or transition or "bottleneck",
            }
        )
