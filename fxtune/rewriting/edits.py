"""What each edit does to the graphs."""

from __future__ import annotations

import operator
from functools import singledispatch

from torch import fx

from fxtune.planning import After, Beside, Core, Insertion, InWeights, Prompted, Value
from fxtune.rewriting.core import in_the_softmax
from fxtune.rewriting.growing import Changes, Growing
from fxtune.rewriting.handing import hand_note
from fxtune.rewriting.layout import from_grid, from_map, from_tokens, to_grid, to_map, to_points, to_tokens
from fxtune.rewriting.prompted import put_rows
from fxtune.rewriting.weights import tune_weights


@singledispatch
def carry_out(edit: object, insertion: Insertion, changes: Changes) -> None:
    """Changes the graphs by the edit of an insertion, whose tuner is in its region already."""
    raise TypeError(edit)


@carry_out.register
def _beside(edit: Beside, insertion: Insertion, changes: Changes) -> None:
    growing = changes.region(insertion.region)
    before = growing.current(edit.output.node)
    readers = list(before.users)
    read = _read(edit, growing)
    others = set(read.users)
    if edit.grid is not None:
        sizes = edit.grid.sizes if isinstance(edit.grid.sizes, tuple) else hand_note(edit.grid.sizes, changes)
        branch = _on_grid(growing, before, insertion.target, read, edit.grid.prefix, sizes)
    else:
        on = _on_map if edit.method == "on_map" else _on_tokens
        branch = on(growing, before, insertion.target, read, edit.source, edit.output)
    if edit.source.node != edit.output.node:
        growing.stand_beside(edit.output.node, set(read.users) - others)
    total = growing.behind(branch, operator.add, (before, branch))
    growing.replace(edit.output.node, readers, total)


def _read(edit: Beside, growing: Growing) -> fx.Node:
    """What the tuner reads: the operation's own output, or a value as the operation is given it, tuned or not."""
    if edit.source.node == edit.output.node:
        return growing.original(edit.source.node)
    return growing.read_beside(edit.output.node, edit.source.node, copied=edit.source.copied)


@carry_out.register
def _after(edit: After, insertion: Insertion, changes: Changes) -> None:
    growing = changes.region(insertion.region)
    before = growing.current(edit.output.node)
    readers = list(before.users)
    after = _on_tokens(growing, before, insertion.target, before, edit.output, edit.output)
    growing.replace(edit.output.node, readers, after)


@carry_out.register
def _weights(edit: InWeights, insertion: Insertion, changes: Changes) -> None:
    tune_weights(edit, insertion.target, changes.region(insertion.region))


@carry_out.register
def _core(edit: Core, insertion: Insertion, changes: Changes) -> None:
    in_the_softmax(edit, insertion.target, changes.region(insertion.region))


@carry_out.register
def _prompted(edit: Prompted, insertion: Insertion, changes: Changes) -> None:
    put_rows(edit, insertion, changes)


def _on_map(growing: Growing, at: fx.Node, tuner: str, read: fx.Node, source: Value, output: Value) -> fx.Node:
    """The tuner on what it reads as a map, channels behind the batch."""
    map = read if source.axis == 1 else (at := growing.behind(at, to_map, (read, source.axis)))
    branch = growing.behind(at, tuner, (map,))
    return branch if output.axis == 1 else growing.behind(branch, from_map, (branch, output.axis))


def _on_grid(
    growing: Growing, at: fx.Node, tuner: str, read: fx.Node, prefix: int, sizes: tuple[int, int] | fx.Node
) -> fx.Node:
    """The tuner on the map that tokens are; each other token is a map of one position."""
    grid = growing.behind(at, to_grid, (read, prefix, sizes))
    others = growing.behind(grid, to_points, (read, prefix, grid))
    branch = growing.behind(others, tuner, (grid,))
    points = growing.behind(branch, tuner, (others,))
    return growing.behind(points, from_grid, (branch, points, prefix, read))


def _on_tokens(growing: Growing, at: fx.Node, tuner: str, read: fx.Node, source: Value, output: Value) -> fx.Node:
    """The tuner on the tokens of what it reads, in the shape of the output, computed behind `at`."""
    plain = [value.rank == 3 and value.axis == 2 for value in (source, output)]
    like = growing.original(output.node)
    tokens = read if plain[0] else (at := growing.behind(at, to_tokens, (read, source.axis)))
    branch = growing.behind(at, tuner, (tokens,))
    return branch if all(plain) else growing.behind(branch, from_tokens, (branch, like, output.axis))
