"""Where tuners stand: at which operations, whatever these are called."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from fxtune.matching import Site
from fxtune.planning import Patch
from fxtune.structure import Structured


class Standing(BaseModel):
    """Where a tuner stands.

    Attributes:
        rule: number of the rule that asked for it; None for a bypass.
        nodes: the nodes of the structure that give what it changes; of a bypass those that give its stems.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: int | None
    nodes: tuple[int, ...]


def standings_of(patch: Patch, form: Structured) -> dict[str, Standing]:
    """Module path of each tuner, and of a bypass, and where it stands."""
    found = {i.path: Standing(rule=i.rule, nodes=nodes_of(i.site, form)) for i in patch.insertions}
    if patch.bypass is not None:
        nodes = [node for level in patch.bypass.levels for node in nodes_of(level.site, form)]
        found[patch.bypass.path] = Standing(rule=None, nodes=tuple(nodes))
    return found


def nodes_of(site: Site, form: Structured) -> tuple[int, ...]:
    """The nodes that give what a site gives: several where parts of a linear map are read."""
    return form.at(site.output.value if site.operation is None else site.operation.value)
