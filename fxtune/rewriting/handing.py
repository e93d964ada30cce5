"""Values of a region handed out to the regions around it, and in to those inside."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace

from torch import fx

from fxtune.planning import Note, Stem
from fxtune.rewriting.growing import Changes, Growing
from fxtune.rewriting.layout import size_note
from fxtune.view import Tap, join


def hand_out(stems: Sequence[Stem], changes: Changes) -> list[fx.Node]:
    """The nodes that hold these stems in the region where they are read.

    Every region that hands one out returns a tuple: its own result first, then what it hands out.
    """
    # A call whose result becomes a tuple gets a node for its own result, which a stem may be: so those come last.
    handed = {id(stem): _handed(stem, changes) for stem in stems if stem.out or stem.into}
    return [handed[id(stem)] if id(stem) in handed else _read(stem, changes) for stem in stems]


def hand_note(note: Note, changes: Changes) -> fx.Node:
    """The node that holds a note of a map's sizes in the region where it is read."""
    if note not in changes.notes:
        if note.into:
            *outside, call = note.into
            before = hand_note(replace(note, into=tuple(outside)), changes)
            changes.notes[note] = _taken_in(before, call, changes)
        else:
            growing = changes.region(note.tap.region)
            map = growing.original(note.tap.node)
            made = growing.behind(map, size_note, (map,))
            made.meta["val"] = size_note(map.meta["val"])
            changes.notes[note] = _out(made, growing, note.out, changes)
    return changes.notes[note]


def _handed(stem: Stem, changes: Changes) -> fx.Node:
    node = _out(_read(stem, changes), changes.region(stem.tap.region), stem.out, changes)
    for call in stem.into:
        node = _taken_in(node, call, changes)
    return node


def _out(node: fx.Node, growing: Growing, calls: Sequence[Tap], changes: Changes) -> fx.Node:
    """The node as the calling regions have it, each from the one inside."""
    for call in calls:
        outer = changes.region(call.region)
        node, growing = _returned(node, growing, call.node, outer), outer
    return node


def _taken_in(node: fx.Node, call: Tap, changes: Changes) -> fx.Node:
    """The node as the region that is called has it: an input behind the others."""
    called = changes.region(call.region).operation(call.node)
    inner = changes.region(join(call.region, str(called.target)))
    called.args = (*called.args, node)
    *_, last = (own for own in inner.graph.nodes if own.op == "placeholder")
    with inner.graph.inserting_after(last):
        taken = inner.graph.placeholder(node.name)
    taken.target = taken.name  # the region may have another input of that name
    taken.meta["val"] = node.meta.get("val")
    return taken


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
