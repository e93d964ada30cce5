"""The sizes that the rules of a tuned model leave open, and what each choice weighs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from fxtune.errors import RuleError
from fxtune.planning import Insertion, Prompted
from fxtune.rules import Rule
from fxtune.tuners import narrows

Sizes = tuple[int, ...]
"""One choice for each slot, in their order."""


@dataclass(frozen=True)
class Slot:
    """One open size: that of a rule's tuners in one block, or at one site that lies in no block.

    Attributes:
        rule: number of the rule, over all rule sets.
        text: the rule and the setting, ``ffn <- res_adapter.dim``.
        setting: the tuner's setting.
        block: number of the block; None where there is none.
        path: module path of the site where there is no block; else empty.
        counts: each size that may be chosen, the smallest first -> how many weights the tuners then have.
        insertions: the tuners, in the order in which they stand in the model.
    """

    rule: int
    text: str
    setting: str
    block: int | None
    path: str
    counts: Mapping[int, int]
    insertions: tuple[Insertion, ...]

    @property
    def sizes(self) -> Sizes:
        """What may be chosen, the smallest first."""
        return tuple(self.counts)

    def __str__(self) -> str:
        return f"{self.text}, {self.path if self.block is None else f'block {self.block}'}"


def slots_of(rules: Sequence[Rule], insertions: Sequence[Insertion], tuned: nn.Module) -> tuple[Slot, ...]:
    """The slots of a tuned model, rule by rule and block by block.

    Args:
        rules: its rules, over all rule sets.
        insertions: its tuners.
        tuned: the model, in which they stand.

    Raises:
        RuleError: the rules leave nothing open; or a size is written down in the graph and can't be another.
    """
    found = [
        slot
        for number, rule in enumerate(rules)
        for slot in _slots(rule, number, [i for i in insertions if i.rule == number], tuned)
    ]
    if not found:
        raise RuleError(
            "the rules of this model leave no size open",
            found=f"{len(insertions)} tuners, and no `choices:` in their rules",
            fix="apply a rule set with choices, such as 'noah', or write `choices: {dim: [0, 1, 5, 10]}` in a rule",
        )
    return tuple(found)


def _slots(rule: Rule, number: int, insertions: Sequence[Insertion], tuned: nn.Module) -> Iterator[Slot]:
    places = {(i.site.block, "" if i.site.block is not None else i.site.path): None for i in insertions}
    for setting, sizes in rule.choices.items():
        for block, path in places:
            here = [i for i in insertions if i.site.block == block and (block is not None or i.site.path == path)]
            _check_rows(here)
            modules = [tuned.get_submodule(i.path) for i in here]
            axes = narrows(rule.tuner)[setting]
            counts = {size: sum(_count(module, axes, size) for module in modules) for size in sorted(sizes)}
            text = f"{rule.target} <- {rule.tuner}.{setting}"
            yield Slot(number, text, setting, block, path, counts, tuple(here))


def _count(module: nn.Module, axes: Mapping[str, int | None], size: int) -> int:
    """How many weights a tuner of so many units has, by its form alone; with none it is not there."""
    if size == 0:
        return 0
    return sum(
        weight.numel() if (axis := axes.get(name)) is None else weight.numel() // weight.shape[axis] * size
        for name, weight in module.named_parameters()
    )


def _check_rows(insertions: Sequence[Insertion]) -> None:
    for insertion in insertions:
        edit = insertion.edit
        if isinstance(edit, Prompted) and edit.counted:
            raise RuleError(
                f"the number of rows of {insertion.tuner} at `{insertion.site.path}` cannot be left open",
                found="the graph counts them: it cuts them off, or leads them around an operation",
                fix="leave form='original' out, whose unbound form computes the same; or leave out their `choices:`",
            )
