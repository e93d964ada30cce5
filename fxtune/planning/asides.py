"""Who reads a value that carries prompt rows, and has no use for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch
from torch import fx

from fxtune.errors import PlanError
from fxtune.planning.edits import Aside, Join
from fxtune.planning.place import Places
from fxtune.planning.rows import Way
from fxtune.view import Tap, View


def find_asides(
    view: View,
    places: Places,
    found: Way,
    join: Join,
    cores: Collection[int],
    cut: int | None,
    refused: Callable[[str], PlanError],
) -> Iterator[Aside]:
    """The readers, off the way, of values that carry rows: a branch beside the attention, or what asks for a size.

    Args:
        view: the view.
        places: the regions.
        found: the way of the rows; its first value is the sequence that they join.
        join: where they join it.
        cores: value ids of the attentions that they take part in.
        cut: value id of the sequence that they leave, None where they leave in an attention.
        refused: makes the error.

    Raises:
        PlanError: such a value has its tokens on no axis of their own.
    """
    known = set(found.values) | _inside_cores(view, found, cores)
    around = {id for bypass in found.bypasses for id in bypass.inside}
    start = found.values[0]
    for id in (id for id in found.values if id not in around and id != cut):
        for tap in view.values[id].taps:
            if id == start and not _carries(tap, join):
                continue
            axis = found.axes.get(id)
            readers = [user for user in places.node(tap).users if _apart(view, places, tap, user, axis, known)]
            if readers and axis is None:
                raise refused(f"{readers[0].name} reads {view.values[id].place()}, where tokens share an axis")
            if readers and axis is not None:
                yield Aside(tap.region, tap.node, axis, tuple(sorted(reader.name for reader in readers)))


def _inside_cores(view: View, found: Way, cores: Collection[int]) -> set[int]:
    """The cores, and what lies between the way and a core (the transpose of the keys, say)."""
    known: set[int] = set()
    pending = list(cores)
    while pending:
        id = pending.pop()
        if id not in known and id not in found.values[:1]:
            known.add(id)
            pending += [v.id for v in view.values[id].inputs() if v.id not in found.values and v.id > found.values[0]]
    return known


def _carries(tap: Tap, join: Join) -> bool:
    """Whether the sequence has its rows there: in what the region of the join hands it to."""
    return tap.region != join.region and (not join.region or tap.region.startswith(f"{join.region}."))


def _apart(view: View, places: Places, tap: Tap, user: fx.Node, axis: int | None, known: set[int]) -> bool:
    """Whether a node reads the value off the way."""
    if user.op == "output" or places.inner(tap, user) is not None:
        return False
    if _is_size(user):
        return axis is not None and bool(user.args[1] == axis)
    computed = view.tapped.get(Tap(tap.region, user.name), [])
    return isinstance(user.meta.get("val"), torch.Tensor) and bool(computed) and not known & set(computed)


def _is_size(node: fx.Node) -> bool:
    return node.target is torch.ops.aten.sym_size.int
