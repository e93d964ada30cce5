"""The pass: from a captured model to one that computes the tokens that are read."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from fxtune.hoisting.leaves import Calls
from fxtune.hoisting.narrowing import narrow
from fxtune.hoisting.needs import Flow, Scope
from fxtune.hoisting.report import Hoisted, told
from fxtune.hoisting.unfolding import unfold


def hoist(root: fx.GraphModule, *, through_detach: bool) -> Hoisted:
    """Moves every `select` and `slice` with literal places up, through what acts on each place alone.

    What is not needed then is not computed any more. The numbers stay the same, up to the rounding of smaller products
    and, in training, up to which random numbers fall to which element: of a dropout's noise, that of the places that
    are left is drawn and nothing else. Only the graphs change: modules, weights and their names, and the call of the
    whole stay as they are. Regions are given and return parts where all that is read of them is a part.

    Args:
        root: a captured model, with or without tuners; its graphs are changed in place.
        through_detach: whether to move through `detach`, too.
    """
    calls = Calls(through_detach=through_detach)
    while True:
        scope = Scope.of(root, calls, through_detach=through_detach)
        flow = Flow(root.graph, root, scope, open=False)
        flows = list(_all([flow, *scope.shared.values()]))
        unfolded = [pair for each in flows for pair in each.unfolded.items()]
        if not unfolded:
            break
        for node, graph in unfolded:
            unfold(node, graph)
    hoisted = told(root, flows)
    changed = [each for top in (flow, *scope.shared.values()) for each in narrow(top)]
    for each in changed:
        each.graph.lint()
        if isinstance(each.owner, fx.GraphModule):
            each.owner.recompile()
    return hoisted


def _all(flows: list[Flow]) -> Iterator[Flow]:
    for flow in flows:
        yield flow
        for inner in flow.inner.values():
            yield from _all(inner)
