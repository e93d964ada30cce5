"""The weights of a single operation, where a tuner is to change them before they are used."""

from __future__ import annotations

from fxtune.errors import PlanError
from fxtune.matching import Site
from fxtune.planning.edits import InWeights
from fxtune.planning.place import Places
from fxtune.view import Tap, View


def in_weights_edit(view: View, places: Places, site: Site) -> InWeights:
    """The edit that lets a tuner change the weights of the operation that a site is.

    Raises:
        PlanError: the operation has no weights of its own, or they belong to another module; or its bias is computed
            where no graph shows it.
    """
    assert site.operation is not None
    weights, tap = site.operation.weights, _visible(view, site.operation.value)
    if weights is None:
        raise _refused(site, "its weights are computed, or shared out of a larger tensor")
    node = places.node(tap)
    if weights.computed is not None and node.op == "call_module":
        raise _refused(site, f"its bias is computed inside `{node.target}`, which is kept whole")
    home = ".".join(part for part in (tap.region, str(node.target) if node.op == "call_module" else "") if part)
    names = []
    for name in (weights.weight, weights.bias):
        if name is not None and home and not name.startswith(f"{home}."):
            raise _refused(site, f"`{name}` belongs to another module than `{home}`")
        names.append(name if name is None or not home else name.removeprefix(f"{home}."))
    return InWeights(tap.node, names[0], names[1], weights.layout, weights.computed)


def _visible(view: View, id: int) -> Tap:
    """Where an operation can be changed: itself, or the module that is kept whole around it."""
    while not view.values[id].taps:
        id = view.readers[id][0]
    return view.values[id].taps[0]


def _refused(site: Site, found: str) -> PlanError:
    return PlanError(
        f"no tuner can change the weights of the {site.kind} at `{site.path}`",
        found=found,
        fix="choose other sites (`where:`), or the unbound form, which leaves weights as they are",
    )
