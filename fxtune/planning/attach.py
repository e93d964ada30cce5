"""How a tuner is attached at a site: in its unbound form, or in the original one of its method's paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fxtune.errors import PlanError, RuleError
from fxtune.matching import Attention, Port, Site, Sites
from fxtune.planning.core import core_edit
from fxtune.planning.edits import After, Beside, Edit, Value
from fxtune.planning.ends import ends_of
from fxtune.planning.grids import Grids
from fxtune.planning.notes import grid_edit
from fxtune.planning.place import Places
from fxtune.planning.prompted import Prompts, prompts_at, prompts_through
from fxtune.planning.storage import Overwritten
from fxtune.planning.weights import in_weights_edit
from fxtune.rules import Rule
from fxtune.tuners import joins_rows, maps_widths, offers
from fxtune.view import Tap

Form = Literal["unbound", "original"]


@dataclass(frozen=True)
class Attachment:
    """An edit, the region that holds the tuner, and what the tuner is told of its place there."""

    region: str
    edit: Edit
    facts: dict[str, Any]


class Attachments:
    """Makes the edits of one patch."""

    def __init__(self, sites: Sites, places: Places, form: Form) -> None:
        self.sites, self.places, self.form = sites, places, form
        self.overwritten, self.grids = Overwritten(sites.view), Grids(sites.view)
        self._cores: dict[tuple[str, str], str] = {}
        self._changed: dict[tuple[str, str], tuple[str, bool, str]] = {}

    def at(self, rule: Rule, site: Site, where: str) -> Attachment:
        """How the rule's tuner is attached at a site.

        Raises:
            RuleError: the original form is asked for, and the tuner has none there.
            PlanError: it cannot be attached at this site; why.
        """
        attention = site.attention is not None and site.attention.whole
        in_softmax = offers(rule.tuner, "attend") and (attention or not offers(rule.tuner, "forward"))
        if in_softmax and self.form == "unbound":
            return self._in_softmax(rule, site, "attend", where)
        if self.form == "unbound":
            return self._beside(rule, site)
        if in_softmax and offers(rule.tuner, "attend_original"):
            return self._in_softmax(rule, site, "attend_original", where)
        if rule.reads == "output" and offers(rule.tuner, "in_sequence"):
            return self._after(rule, site, where)
        reads_as_operation = rule.reads == "input" or not maps_widths(rule.tuner)
        if site.operation is not None and reads_as_operation and offers(rule.tuner, "in_weights"):
            return self._in_weights(rule, site, where)
        raise _no_original(rule, where)

    def through(self, rule: Rule, run: Sequence[Site], where: str) -> Attachment:
        """How a tuner is attached whose prompts stay in the sequence from the first site to the last.

        Raises:
            PlanError: it cannot be; why.
        """
        method = "attend" if self.form == "unbound" else "attend_original"
        return self._prompts(prompts_through(self.sites, self.places, run, method), rule, run[0], where)

    def _in_softmax(self, rule: Rule, site: Site, method: str, where: str) -> Attachment:
        if joins_rows(rule.tuner):
            return self._prompts(prompts_at(self.sites, self.places, site, method), rule, site, where)
        if site.attention is None or not site.attention.whole:
            raise PlanError(
                f"{rule.tuner} goes on attentions only",
                found=f"the {site.kind} at `{site.path}`",
                where=where,
                fix="write `at: mha`",
            )
        region, core = core_edit(self.sites.view, self.places, site, method)
        self._claim(region, core.node, rule, site, where)
        return Attachment(region, core, _facts(site.attention, site.width))

    def _prompts(self, prompts: Prompts, rule: Rule, site: Site, where: str) -> Attachment:
        cores = [(region, core.node) for region, core in prompts.edit.cores]
        for region, core in (*cores, *((mask.region, mask.core) for mask in prompts.edit.masks)):
            self._claim(region, core, rule, site, where)
        return Attachment(prompts.region, prompts.edit, _facts(prompts.attention, prompts.width))

    def _claim(self, region: str, node: str, rule: Rule, site: Site, where: str) -> None:
        other = self._cores.setdefault((region, node), where)
        if other != where:
            raise PlanError(
                f"{rule.tuner} cannot take part in the softmax of the {site.kind} at `{site.path}`",
                found=f"the rule at {other} does already, and how two share one softmax is not defined",
                where=where,
                fix="keep one of the two rules there, or part them by `where:`",
            )

    def _beside(self, rule: Rule, site: Site) -> Attachment:
        ends = ends_of(rule, site, self.grids)
        self._check_memory(rule, site)
        source, output = self.places.meeting(site, ends.read, ends.output)
        # The output itself is followed by the sum: whatever overwrote it overwrites the sum instead.
        copied = ends.read is not ends.output and ends.read.value in self.overwritten
        edit = Beside(
            source=_value(source.node, ends.read, copied),
            output=_value(output.node, ends.output),
            method=ends.method,
            grid=None if ends.grid is None else grid_edit(ends.grid, self.grids, self.places, source, site),
        )
        return Attachment(output.region, edit, ends.facts)

    def _after(self, rule: Rule, site: Site, where: str) -> Attachment:
        self._check_memory(rule, site)
        _, output = self.places.meeting(site, site.output, site.output)
        self._check_alone(output, rule, site, where, behind=True)
        return Attachment(output.region, After(_value(output.node, site.output)), {"width_in": site.width})

    def _in_weights(self, rule: Rule, site: Site, where: str) -> Attachment:
        ends = ends_of(rule, site, self.grids)
        _, output = self.places.meeting(site, ends.read, ends.output)
        self._check_alone(output, rule, site, where, behind=False)
        return Attachment(output.region, in_weights_edit(self.sites.view, self.places, site), ends.facts)

    def _check_alone(self, output: Tap, rule: Rule, site: Site, where: str, *, behind: bool) -> None:
        """Refuses what would be no original form: a layer behind an operation acts on what others make of it, too, and
        the same tuner beside the operation does not."""
        tuner, other_behind, place = self._changed.setdefault((output.region, output.node), (rule.tuner, behind, where))
        if place != where and (behind or other_behind):
            raise PlanError(
                f"{rule.tuner} has no original form at the {site.kind} at `{site.path}` together with {tuner}",
                found=f"{tuner if other_behind else rule.tuner} is a layer behind the operation there and would act on "
                f"what {rule.tuner if other_behind else tuner} changes; unbound, it does not",
                where=f"{where} and {place}",
                fix="leave form='original' out, or part the two rules by `where:`",
            )

    def _check_memory(self, rule: Rule, site: Site) -> None:
        reader = self.overwritten.reader_elsewhere(site.output.value)
        if reader is not None:
            raise PlanError(
                f"{rule.tuner} cannot be added to the {site.kind} at `{site.path}`",
                found="its output shares memory with another value, is overwritten later, and the other value is then "
                f"read at {reader.place()}",
                fix="choose other sites (`where:`), or let the model's code copy the value before it overwrites it",
            )


def _facts(attention: Attention, width: int) -> dict[str, int]:
    """What a tuner that takes part in an attention is told."""
    return {"kv_heads": attention.kv_heads, "head_dim": attention.head_dim, "width_in": width}


def _value(node: str, port: Port, copied: bool = False) -> Value:
    return Value(node, port.channel_axis, len(port.shape), copied)


def _no_original(rule: Rule, where: str) -> RuleError:
    fix = "leave form='original' out"
    if offers(rule.tuner, "in_sequence"):
        found = f"{rule.tuner} has one where it reads the output, behind the operation; this rule reads the input"
        fix = f"write `reads: output` in the rule, or {fix}"
    elif offers(rule.tuner, "in_weights"):
        found = f"{rule.tuner} has one at single operations with weights, whose input it reads"
        fix = f"name operations of the unit with `on:` and leave `reads:` out, or {fix}"
    elif offers(rule.tuner, "attend_original"):
        found = f"{rule.tuner} has one at an attention only, not at {rule.target}"
        fix = f"write `at: mha` in the rule, or {fix}"
    else:
        found = f"{rule.tuner} has none: it is a branch beside the operation and nothing else"
    return RuleError(f"No original form of {rule.tuner} at {rule.target}", found=found, where=where, fix=fix)
