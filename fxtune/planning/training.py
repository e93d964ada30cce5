"""Which of the model's own weights train."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from fxtune import source
from fxtune.errors import PlanError
from fxtune.rules import RuleSet


def trained_names(rule_sets: Sequence[RuleSet], names: Sequence[str], head: str | None) -> tuple[str, ...]:
    """State_dict names of the model's parameters that train beside the tuners, in the model's order.

    Args:
        rule_sets: what is asked for.
        names: every parameter of the model.
        head: module path of the head, or None where there is none.

    Raises:
        PlanError: the head is to train and there is none; or a glob fits no parameter.
    """
    chosen: set[str] = set()
    for rule_set in rule_sets:
        for i, entry in enumerate(rule_set.train):
            chosen |= set(_named(entry, names, head, rule_set.document.where(("train", i))))
    return tuple(name for name in names if name in chosen)


def _named(entry: str, names: Sequence[str], head: str | None, where: str) -> Iterable[str]:
    if entry == "tuners" or (entry == "head if any" and head is None):
        return []
    if entry == "all":
        return names
    if entry in ("head", "head if any"):
        if head is None:
            raise PlanError(
                "the head is to train, and this model has none",
                where=where,
                fix="pass head='module.path', or write `train: [tuners]` or `train: [tuners, head if any]`",
            )
        return [name for name in names if name.startswith(f"{head}.")]
    found = [name for name in names if fnmatchcase(name, entry)]
    if not found:
        near = source.nearest(entry, names)
        raise PlanError(
            f"`train: {entry}` fits no weight of the model",
            found=f"the nearest names are {', '.join(near)}" if near else f"the first names are {', '.join(names[:3])}",
            where=where,
            fix="write a glob over parameter names, such as '*.bias'",
        )
    return found
