"""A choice of sizes as rules that anybody can apply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fxtune.planning import Insertion
from fxtune.rules import Rule
from fxtune.saving import Made, Origin
from fxtune.searching.slots import Sizes, Slot


def narrowed_rules(made: Made, slots: Sequence[Slot], sizes: Sizes) -> tuple[Origin, list[list[Insertion]]]:
    """How the sub-network is made, and of which of the supernet's tuners those of each of its rules are a part.

    A rule that leaves a size open becomes one rule for each size that was chosen, at the blocks that have it; where it
    is 0 there is no tuner.

    Args:
        made: how the supernet was made.
        slots: its open sizes.
        sizes: what is chosen for them.

    Returns:
        The arguments of `apply`; and the supernet's tuners, rule by rule over all rule sets.
    """
    files, wholes, number = [], [], 0
    for file in made.origin.rules:
        rules: list[Rule] = []
        for rule in file.rules:
            here = [(slot, size) for slot, size in zip(slots, sizes, strict=True) if slot.rule == number]
            for part, paths in _split(rule, here) if here else [(rule, None)]:
                rules.append(part.model_copy(update={"choices": {}}))
                wholes.append([i for i in made.insertions if i.rule == number and (paths is None or i.path in paths)])
            number += 1
        name = file.name if rules == file.rules else f"{file.name}_found"
        files.append(file.model_copy(update={"name": name, "rules": rules}))
    return made.origin.model_copy(update={"rules": files}), wholes


def _split(rule: Rule, chosen: Sequence[tuple[Slot, int]]) -> list[tuple[Rule, set[str] | None]]:
    """The rule once for each size, and once more for sites that lie in no block; each with its tuners' paths."""
    groups: dict[tuple[int, bool], list[Slot]] = {}
    for slot, size in chosen:
        if size:
            groups.setdefault((size, slot.block is not None), []).append(slot)
    return [
        (_part(rule, group, size, in_blocks=in_blocks), {i.path for slot in group for i in slot.insertions})
        for (size, in_blocks), group in sorted(groups.items())
    ]


def _part(rule: Rule, group: Sequence[Slot], size: int, *, in_blocks: bool) -> Rule:
    """The rule at the sites of these slots, with tuners of this size."""
    sites: dict[str, Any] = {"blocks": [slot.block for slot in group], "drop": None}
    if not in_blocks:
        sites = {"path": [slot.path for slot in group]}
    return rule.model_copy(
        update={
            "where": rule.where.model_copy(update=sites),
            "insert": {rule.tuner: {**rule.settings, group[0].setting: size}},
            "expect": None,
        }
    )
