"""From rules and sites to a patch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from torch import fx

from fxtune.errors import MatchError, PlanError
from fxtune.matching import Port, Site, Sites
from fxtune.planning.choose import Choice, choose
from fxtune.planning.patch import Insertion, Patch, RulePlan, Source
from fxtune.planning.place import Places
from fxtune.planning.storage import Overwritten
from fxtune.planning.training import trained_names
from fxtune.rules import Rule, RuleSet
from fxtune.tuners import Placement, maps_widths, refusal


def plan(
    root: fx.GraphModule,
    sites: Sites,
    rule_sets: Sequence[RuleSet],
    *,
    head: str | None = None,
    seed: int | None = None,
) -> Patch:
    """What `rule_sets` change in a captured model. Nothing is changed yet.

    Args:
        root: the captured model.
        sites: its sites.
        rule_sets: resolved rule sets (`fxtune.tuners.resolve`), in the order in which they are carried out.
        head: module path of the head, if any.
        seed: for the weights of new tuners.

    Raises:
        MatchError: a rule matches less than it expects, or all rules together match nothing.
        PlanError: what a rule asks for cannot be done at a site; where and why.
        PatternError: a rule names an unknown pattern.
    """
    planner = _Planner(root, sites)
    rules = tuple(
        planner.rule(rule, rule_set.place(i), number) for number, (rule_set, i, rule) in enumerate(_numbered(rule_sets))
    )
    if rules and not any(rule.insertions for rule in rules):
        raise _nothing(rules, rule_sets)
    names = [name for name, _ in root.named_parameters()]
    return Patch(
        rules=rules,
        trained=trained_names(rule_sets, names, head),
        seed=seed,
        blocks=tuple(dict.fromkeys(site.path for site in sites.of("block"))),
    )


def _numbered(rule_sets: Sequence[RuleSet]) -> Iterator[tuple[RuleSet, int, Rule]]:
    for rule_set in rule_sets:
        for i, rule in enumerate(rule_set.rules):
            yield rule_set, i, rule


class _Planner:
    def __init__(self, root: fx.GraphModule, sites: Sites) -> None:
        self.sites = sites
        self.places = Places(root)
        self.overwritten = Overwritten(sites.view)
        self.labels: Counter[str] = Counter()

    def rule(self, rule: Rule, where: str, number: int) -> RulePlan:
        reason = refusal(rule.tuner, rule.target)
        if reason is not None:
            raise PlanError(f"{rule.tuner} does not go on {rule.target}", found=reason, where=where)
        choice: Choice = choose(rule, self.sites, where)
        text = f"{rule.target} <- {rule.tuner}({', '.join(f'{k}={v}' for k, v in rule.settings.items())})"
        insertions = tuple(self._insertion(rule, site, number) for site in choice.sites)
        misses = tuple(self.sites.near_misses(rule.at))
        return RulePlan(text, insertions, choice.skipped, misses, self._notes(rule, insertions))

    def _insertion(self, rule: Rule, site: Site, number: int) -> Insertion:
        port = self._read(rule, site)
        self._check_memory(rule, site)
        source, output = self.places.meeting(site, port)
        return Insertion(
            region=output.region,
            label=self._label(output.region, f"{site.label}_{rule.tuner}"),
            tuner=rule.tuner,
            settings=dict(rule.settings),
            place=Placement(
                width=site.width,
                heads=site.heads,
                kind=site.kind,
                width_in=port.width,
                operation=site.operation.op if site.operation else "",
                path=site.path,
            ),
            source=Source(source.node, port.channel_axis, len(port.shape), self._copied(port, site)),
            output=output.node,
            axis=site.output.channel_axis,
            rank=len(site.output.shape),
            site=site,
            rule=number,
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

    @staticmethod
    def _read(rule: Rule, site: Site) -> Port:
        """Where input and output differ in shape, the tuner reads the output (definitions, section 3).

        A tuner that maps between widths reads the input whatever its width.
        """
        same_width = site.input.width == site.output.width or maps_widths(rule.tuner)
        same_positions = site.input.positions == site.output.positions
        if rule.reads == "input" and maps_widths(rule.tuner) and not same_positions:
            raise PlanError(
                f"{rule.tuner} cannot go on the {site.kind} at `{site.path}`",
                found=f"{site.input.positions} positions at its input and {site.output.positions} at its output",
                fix="choose sites that keep the positions apart (`where:`), or let the rule read the output "
                "(`reads: output`)",
            )
        return site.input if rule.reads == "input" and same_width and same_positions else site.output

    def _copied(self, port: Port, site: Site) -> bool:
        # The output itself is followed by the sum: whatever overwrote it overwrites the sum instead.
        return port is not site.output and port.value in self.overwritten

    def _label(self, region: str, wanted: str) -> str:
        key = f"{region}:{wanted}"
        self.labels[key] += 1
        return wanted if self.labels[key] == 1 else f"{wanted}_{self.labels[key]}"

    @staticmethod
    def _notes(rule: Rule, insertions: tuple[Insertion, ...]) -> tuple[str, ...]:
        if rule.reads == "output":
            return ()
        reading_output = [i.site.path for i in insertions if i.source.node == i.output]
        if not reading_output:
            return ()
        return (f"reads the output, for input and output differ in shape, at {', '.join(reading_output)}",)


def _nothing(rules: tuple[RulePlan, ...], rule_sets: Sequence[RuleSet]) -> MatchError:
    lines = [f"{rule.text}: {rule.skipped}" for rule in rules]
    lines += [f"near miss, {miss.kind}: {miss}" for rule in rules for miss in rule.near_misses]
    names = ", ".join(rule_set.name for rule_set in rule_sets)
    return MatchError(
        f"no rule of {names} matched anything in this model",
        found="".join(f"\n    {line}" for line in dict.fromkeys(lines)),
        where=rule_sets[0].document.where(("rules",)),
        fix="`fxtune inspect MODEL` shows what the model has; a pattern of your own goes under `patterns:`",
    )
