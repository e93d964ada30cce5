"""Prompt rows on their way through a sequence."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, fx

from fxtune.planning import Insertion, Prompted
from fxtune.rewriting.core import in_the_softmax
from fxtune.rewriting.growing import Changes
from fxtune.tuners import rows_through, seen_by_prompts


def put_rows(edit: Prompted, insertion: Insertion, changes: Changes) -> None:
    """Lets the tuner's prompts join the sequence, pass what is on their way, and leave."""
    home = changes.region(insertion.region)
    prompts = home.module.get_parameter(f"{insertion.target}.prompts")
    many = prompts.shape[0]
    _cut(edit, many, changes)
    for region, core in edit.cores:
        growing, label = changes.region(region), insertion.label
        if edit.stays:
            label = f"{label}_rows"
            growing.tuners()[label] = rows_through(many, core.method)
        in_the_softmax(core, f"tuners.{label}", growing, query_rows=edit.query_rows)
    _step_aside(edit, many, changes)
    _lengthen_masks(edit, many, changes)
    _join(edit, insertion, changes)
    _go_around(edit, many, changes)
    for resize in edit.resized:
        node = changes.region(resize.region).original(resize.node)
        sizes = list(node.args[resize.position])  # type: ignore[arg-type]
        for place, size in resize.changed.items():
            sizes[place] = size
        node.update_arg(resize.position, sizes)


def _join(edit: Prompted, insertion: Insertion, changes: Changes) -> None:
    growing = changes.region(edit.join.region)
    sequence = growing.current(edit.join.node)
    joined = growing.behind(sequence, with_rows, (sequence, None))
    # The tuner lives in the region of the attention, which is this one or inside of it.
    path = insertion.path.removeprefix(f"{edit.join.region}.")
    joined.update_arg(1, growing.state(joined, f"{path}.prompts"))
    growing.give(edit.join.readers, sequence, joined)


def _step_aside(edit: Prompted, many: int, changes: Changes) -> None:
    for aside in edit.asides:
        growing = changes.region(aside.region)
        rows = growing.current(aside.node)
        alone = growing.behind(rows, without_rows, (rows, many, aside.axis))
        growing.give(aside.readers, rows, alone)


def _lengthen_masks(edit: Prompted, many: int, changes: Changes) -> None:
    for mask in edit.masks:
        growing = changes.region(mask.region)
        own = growing.current(mask.node)
        longer = growing.behind(own, with_query_rows, (own, many))
        growing.give(mask.readers, own, longer)


def _go_around(edit: Prompted, many: int, changes: Changes) -> None:
    for bypass in edit.bypasses:
        growing = changes.region(bypass.region)
        entry, exit = growing.current(bypass.entry), growing.current(bypass.exit)
        behind = list(exit.users)
        alone = growing.behind(entry, without_rows, (entry, many, bypass.axis))
        growing.give(bypass.readers, entry, alone)
        _read(behind, exit, growing.behind(exit, with_rows_of, (exit, entry, many, bypass.axis)))


def _cut(edit: Prompted, many: int, changes: Changes) -> None:
    if edit.cut is None:
        return
    growing = changes.region(edit.cut.region)
    end = growing.current(edit.cut.node)
    readers = list(end.users)
    growing.replace(edit.cut.node, readers, growing.behind(end, without_rows, (end, many, edit.cut.axis)))


def _read(readers: Iterable[fx.Node], before: fx.Node, after: fx.Node) -> None:
    for reader in readers:
        reader.replace_input_with(before, after)


def with_rows(sequence: Tensor, prompts: Tensor) -> Tensor:
    """``[x; x_pro]``: prompts P x D behind the tokens of every sample, B x N x D."""
    return torch.cat([sequence, prompts.to(sequence.dtype).expand(sequence.shape[0], -1, -1)], dim=1)


def without_rows(sequence: Tensor, many: int, axis: int) -> Tensor:
    """The sequence without its last rows."""
    return sequence.narrow(axis, 0, sequence.shape[axis] - many)


def with_rows_of(changed: Tensor, sequence: Tensor, many: int, axis: int) -> Tensor:
    """`changed`, and behind it the last rows of the sequence that it was made from."""
    rows = sequence.narrow(axis, sequence.shape[axis] - many, many)
    return torch.cat([changed, rows.to(changed.dtype)], dim=axis)


def with_query_rows(mask: Tensor, many: int) -> Tensor:
    """A mask with rows for the queries of prompts; as it is where one row serves all queries."""
    if mask.dim() < 2 or mask.shape[-2] == 1:
        return mask
    seen = seen_by_prompts(mask)
    assert seen is not None
    return torch.cat([mask, seen.expand(*mask.shape[:-2], many, -1)], dim=-2)
