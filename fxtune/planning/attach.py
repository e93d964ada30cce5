"""How a tuner is attached at a site: its unbound form, or the original one of its method's paper."""

from __future__ import annotations

from typing import Literal

from fxtune.errors import PlanError, RuleError
from fxtune.matching import Port, Site
from fxtune.planning.core import core_edit
from fxtune.planning.edits import After, Beside, Edit, Value
from fxtune.planning.place import Places
from fxtune.planning.storage import Overwritten
from fxtune.rules import Rule
from fxtune.tuners import offers
from fxtune.view import View

Form = Literal["unbound", "original"]


class Attachments:
    """Makes the edits of one patch."""

    def __init__(self, view: View, places: Places, form: Form) -> None:
        self.view, self.places, self.form = view, places, form
        self.overwritten = Overwritten(view)
        self._cores: dict[tuple[str, str], str] = {}

    def edit(self, rule: Rule, site: Site, where: str) -> tuple[str, Edit]:
        """The region that changes, and how.

        Raises:
            RuleError: the original form is asked for, and the tuner has none there.
            PlanError: it cannot be attached at this site; why.
        """
        in_softmax = site.attention is not None and site.attention.whole and offers(rule.tuner, "attend")
        if self.form == "unbound":
            return self._core(rule, site, "attend", where) if in_softmax else self._beside(rule, site)
        if in_softmax and offers(rule.tuner, "attend_original"):
            return self._core(rule, site, "attend_original", where)
        if rule.reads == "output" and offers(rule.tuner, "in_sequence"):
            return self._after(rule, site)
        raise _no_original(rule, where)

    def _core(self, rule: Rule, site: Site, method: str, where: str) -> tuple[str, Edit]:
        region, edit = core_edit(self.view, self.places, site, method)
        other = self._cores.setdefault((region, edit.node), where)
        if other != where:
            raise PlanError(
                f"{rule.tuner} cannot take part in the softmax of the {site.kind} at `{site.path}`",
                found=f"the rule at {other} does already, and how two share one softmax is not defined",
                where=where,
                fix="keep one of the two rules there, or part them by `where:`",
            )
        return region, edit

    def _beside(self, rule: Rule, site: Site) -> tuple[str, Edit]:
        port = _read(rule, site)
        self._check_memory(rule, site)
        source, output = self.places.meeting(site, port)
        # The output itself is followed by the sum: whatever overwrote it overwrites the sum instead.
        copied = port is not site.output and port.value in self.overwritten
        return output.region, Beside(_value(source.node, port, copied), _value(output.node, site.output))

    def _after(self, rule: Rule, site: Site) -> tuple[str, Edit]:
        self._check_memory(rule, site)
        _, output = self.places.meeting(site, site.output)
        return output.region, After(_value(output.node, site.output))

    def _check_memory(self, rule: Rule, site: Site) -> None:
        reader = self.overwritten.reader_elsewhere(site.output.value)
        if reader is not None:
            raise PlanError(
                f"{rule.tuner} cannot be added to the {site.kind} at `{site.path}`",
                found="its output shares memory with another value, is overwritten later, and the other value is then "
                f"read at {reader.place()}",
                fix="choose other sites (`where:`), or let the model's code copy the value before it overwrites it",
            )


def _read(rule: Rule, site: Site) -> Port:
    """Where input and output differ in shape, the tuner reads the output (definitions, section 3)."""
    same = (site.input.width, site.input.positions) == (site.output.width, site.output.positions)
    return site.input if rule.reads == "input" and same else site.output


def _value(node: str, port: Port, copied: bool = False) -> Value:
    return Value(node, port.channel_axis, len(port.shape), copied)


def _no_original(rule: Rule, where: str) -> RuleError:
    if offers(rule.tuner, "in_sequence"):
        found = f"{rule.tuner} has one where it reads the output, behind the operation; this rule reads the input"
        fix = "write `reads: output` in the rule, or leave form='original' out"
    elif offers(rule.tuner, "attend_original"):
        found = f"{rule.tuner} has one at an attention only, not at {rule.at}"
        fix = "write `at: mha` in the rule, or leave form='original' out"
    else:
        found = f"{rule.tuner} has none: it was never anything but a branch beside the operation"
        fix = "leave form='original' out"
    return RuleError(f"No original form of {rule.tuner} at {rule.at}", found=found, where=where, fix=fix)
