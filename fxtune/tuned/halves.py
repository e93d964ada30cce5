"""The trunk of a tuned model, run apart from what trains beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from fxtune.errors import InputError, PlanError
from fxtune.splitting import Split, has_bypass, split
from fxtune.tracing import Region
from fxtune.tuned.tuning import Tuning

_known: WeakKeyDictionary[Region, Split] = WeakKeyDictionary()


def split_for(state: Tuning, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Split:
    """The halves of the graph that takes these inputs, which is captured if they are new.

    Raises:
        PlanError: there is no bypass.
    """
    check_bypass(state)
    return _split(state.graph_for("forward", args, kwargs))


def split_of(state: Tuning, features: Mapping[str, Tensor]) -> Split:
    """The halves whose branch takes these features.

    Raises:
        PlanError: there is no bypass.
        InputError: there are no such halves.
    """
    check_bypass(state)
    refused = []
    for graph in state.graphs["forward"]:
        halves = _split(graph)
        reason = halves.refusal(features)
        if reason is None:
            return halves
        refused.append(reason)
    raise InputError(
        "these features do not belong to this tuned model",
        found=refused[0],
        fix="compute them with the same rules on the same model",
    )


def _split(graph: Region) -> Split:
    if graph not in _known:
        _known[graph] = split(graph)
    return _known[graph]


def check_bypass(state: Tuning) -> None:
    """Refuses a model without a bypass.

    Raises:
        PlanError: there is none.
    """
    if not has_bypass(state.first):
        raise PlanError(
            "this tuned model has no trunk that could run apart from what trains",
            found="no detached bypass among its tuners",
            fix='put one in: fxtune.apply(model, rules="res_bypass")',
        )
