"""Supernet: a tuned model and all the smaller ones that are part of it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from fxtune.errors import InputError, PlanError
from fxtune.saving import Made
from fxtune.searching.rules import narrowed_rules
from fxtune.searching.slots import Sizes, slots_of
from fxtune.searching.space import Space
from fxtune.searching.subnetwork import subnetwork
from fxtune.tuned import TunedModel, computing_with, first_units, is_tuners
from fxtune.tuners import narrows


class Supernet:
    """A tuned model whose rules leave sizes open (`choices:`), and the sub-networks that share its weights.

    A sub-network has, for each rule and block, the first k units of the tuners there. It is trained with all the others
    at once: every step draws one::

        supernet = fxtune.Supernet(fxtune.apply(model, "noah"))
        for x, y in data:
            with supernet.narrowed(supernet.draw()):
                loss(supernet.tuned(x), y).backward()
            optimizer.step()

    Args:
        tuned: the model, with its tuners at their largest sizes.

    Attributes:
        tuned: the model.
        slots: the sizes that are open, rule by rule and block by block. `Sizes` are one choice for each, in this order.

    Raises:
        RuleError: no size is open, or one can't be.
        PlanError: the model was not made by `fxtune.apply`, or its tuners are merged.
    """

    def __init__(self, tuned: TunedModel) -> None:
        self._made = _made(tuned)
        self.tuned, self._state = tuned, tuned._fxtune
        rules = [rule for file in self._made.origin.rules for rule in file.rules]
        self.slots = slots_of(rules, self._made.insertions, tuned)
        self._tuners = [
            [(tuned.get_submodule(i.path), narrows(i.tuner)[slot.setting]) for i in slot.insertions]
            for slot in self.slots
        ]

    @property
    def largest(self) -> Sizes:
        """The largest choice of every size."""
        return tuple(max(slot.counts) for slot in self.slots)

    def space(self, budget: int) -> Space:
        """All choices that have at most so many weights in tuners. The head, which all of them have, does not count."""
        inside = {f"{i.path}." for slot in self.slots for i in slot.insertions}
        fixed = sum(
            weight.numel()
            for name, weight in self.tuned.named_parameters()
            if is_tuners(name) and not any(name.startswith(path) for path in inside)
        )
        return Space(tuple(slot.counts for slot in self.slots), fixed, budget)

    def count(self, sizes: Sequence[int]) -> int:
        """How many weights the tuners of a sub-network have, told without building it.

        Raises:
            InputError: these are no sizes of this supernet.
        """
        return self.space(0).weights(self.checked(sizes))

    def draw(self, rng: random.Random | None = None) -> Sizes:
        """Sizes drawn from all choices alike, whatever they weigh; by Python's own generator if none is given."""
        chosen = rng or random
        return tuple(chosen.choice(slot.sizes) for slot in self.slots)

    @contextmanager
    def narrowed(self, sizes: Sequence[int]) -> Iterator[TunedModel]:
        """While on, the tuned model computes what the sub-network of these sizes computes, with views of its weights.

        Gradients come to the weights themselves, so optimizers and clipping go on as they are. Call `backward` inside
        where Blocks are checkpointed: what is computed again must be the same sub-network. What torch compiles is
        compiled anew for sizes that are new.

        Raises:
            InputError: these are no sizes of this supernet.
            PlanError: another set of tuners is in use, or they are merged or off.
        """
        chosen = self.checked(sizes)
        if self.tuned._fxtune is not self._state:
            raise PlanError(
                "the tuners of this supernet are not in use now",
                found="they are merged, off, or another set is in use",
                fix="undo that: tuned.unmerge(), tuned.use(name), or leave disabled()",
            )
        with ExitStack() as stack:
            for tuners, size in zip(self._tuners, chosen, strict=True):
                for module, axes in tuners:
                    stack.enter_context(computing_with(module, first_units(module, axes, size)))
            yield self.tuned

    def rules(self, sizes: Sequence[int]) -> list[dict[str, Any]]:
        """The sub-network as ordinary rule sets: `fxtune.apply` takes them, and YAML files can hold them.

        Raises:
            InputError: these are no sizes of this supernet.
        """
        origin, _ = narrowed_rules(self._made, self.slots, self.checked(sizes))
        return origin.rule_data()

    def subnetwork(self, sizes: Sequence[int]) -> TunedModel:
        """The sub-network as a tuned model of its own, with copies of the weights, ready to be trained on or saved.

        Raises:
            InputError: these are no sizes of this supernet.
        """
        return subnetwork(self.tuned, self._made, self.slots, self.checked(sizes))

    def checked(self, sizes: Sequence[int]) -> Sizes:
        """The sizes, if they are a choice for each slot.

        Raises:
            InputError: they are not; which.
        """
        if len(sizes) != len(self.slots):
            raise InputError(
                "these are no sizes of this supernet",
                found=f"{len(sizes)} numbers, and {len(self.slots)} slots",
                fix="give one number for each of supernet.slots, in their order",
            )
        for slot, size in zip(self.slots, sizes, strict=True):
            if size not in slot.counts:
                raise InputError(
                    "these are no sizes of this supernet",
                    found=f"{size!r} at {slot}",
                    fix=f"choose one of {', '.join(map(str, slot.sizes))}",
                )
        return tuple(sizes)

    def told(self, sizes: Sequence[int]) -> str:
        """The sizes, a line for each rule: ``ffn <- res_adapter.dim: 10 0 5 1``."""
        lines: dict[str, list[str]] = {}
        for slot, size in zip(self.slots, self.checked(sizes), strict=True):
            lines.setdefault(slot.text, []).append(str(size))
        return "\n".join(f"{text}: {' '.join(chosen)}" for text, chosen in lines.items())


def _made(tuned: object) -> Made:
    if not isinstance(tuned, TunedModel):
        raise PlanError(
            "a supernet is a tuned model",
            found=type(tuned).__name__,
            fix='pass what fxtune.apply(model, "noah") or fxtune.load(model, folder) returns',
        )
    state = tuned._fxtune
    if state.made is None or state.unmerged is not None:
        raise PlanError(
            "this tuned model cannot be a supernet",
            found="it was not made by fxtune.apply" if state.made is None else "its tuners are in the weights",
            fix=None if state.made is None else "call unmerge() first",
        )
    return state.made
