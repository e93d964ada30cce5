"""Values of a region handed out to the regions around it."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import fx

from fxtune.planning import Stem
from fxtune.rewriting.growing import Changes, Growing


def hand_out(stems: Sequence[Stem], changes: Changes) -> list[fx.Node]:
    """The nodes that hold these stems in the region where they are read.

    Every region between returns a tuple: its own result first, then what it hands out.
    """
    # A call whose result becomes a tuple gets a node for its own result, which a stem may be: so those come last.
    handed = {id(stem): _handed(stem, changes) for stem in stems if stem.calls}
    return [handed[id(stem)] if stem.calls else _read(stem, changes) for stem in stems]


def _handed(stem: Stem, changes: Changes) -> fx.Node:
    node, growing = _read(stem, changes), changes.region(stem.tap.region)
    for call in stem.calls:
        outer = changes.region(call.region)
        node, growing = _returned(node, growing, call.node, outer), outer
    return node


def _read(stem: Stem, changes: Changes) -> fx.Node:
    growing = changes.region(stem.tap.region)
    return growing.copy_of(stem.tap.node) if stem.copied else growing.current(stem.tap.node)


def _returned(node: fx.Node, growing: Growing, call: str, outer: Growing) -> fx.Node:
    """The region returns `node` too; gives it as the region around it has it behind the call."""
    end = growing.graph.output_node()
    called = outer.operation(call)
    if not growing.hands_out:
        growing.hands_out = True
        end.update_arg(0, (end.args[0],))
        readers = list(called.users)
        own = outer.behind(called, operator.getitem, (called, 0))
        outer.replace(call, readers, own)
        called.meta["val"] = (called.meta.get("val"),)
    results = end.args[0]
    assert isinstance(results, tuple)
    if node not in results[1:]:
        results = (*results, node)
        end.update_arg(0, results)
        called.meta["val"] = (*called.meta["val"], node.meta.get("val"))
    got = outer.behind(called, operator.getitem, (called, results.index(node, 1)))
    got.meta["val"] = node.meta.get("val")
    return got
