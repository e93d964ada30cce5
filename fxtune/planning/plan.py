"""From rules and sites to a patch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import fx

from fxtune.errors import PlanError, RuleError
from fxtune.matching import Site, Sites
from fxtune.planning.attach import Attachment, Attachments, Form
from fxtune.planning.bypass import BypassPlan
from fxtune.planning.bypassing import plan_bypass
from fxtune.planning.choose import Choice, choose
from fxtune.planning.edits import Beside, Edit
from fxtune.planning.folding import plan_folding
from fxtune.planning.nothing import nothing_matched
from fxtune.planning.patch import Insertion, Patch, RulePlan
from fxtune.planning.place import Places
from fxtune.planning.training import trained_names
from fxtune.planning.trunk import check_reached
from fxtune.rules import Rule, RuleSet
from fxtune.tuners import Placement, reads_mask, reads_output, refusal, spans_sites


def plan(
    root: fx.GraphModule,
    sites: Sites,
    rule_sets: Sequence[RuleSet],
    *,
    head: str | None = None,
    seed: int | None = None,
    form: Form = "unbound",
) -> Patch:
    """What `rule_sets` change in a captured model. Nothing is changed yet.

    Args:
        root: the captured model.
        sites: its sites.
        rule_sets: resolved rule sets (`fxtune.tuners.resolve`), in the order in which they are carried out.
        head: module path of the head, if any.
        seed: for the weights of new tuners.
        form: of the tuners.

    Raises:
        MatchError: a rule matches less than it expects, or all rules together match nothing.
        RuleError: the original form is asked for, and a tuner has none where its rule puts it.
        PlanError: what a rule asks for cannot be done at a site; where and why.
        PatternError: a rule names an unknown pattern.
    """
    planner = _Planner(root, sites, form, head)
    rules = tuple(
        planner.rule(rule, rule_set.place(i), number) for number, (rule_set, i, rule) in enumerate(_numbered(rule_sets))
    )
    insertions = [insertion for rule in rules for insertion in rule.insertions]
    bypass = planner.bypass(rule_sets)
    if rules and not insertions:
        raise nothing_matched(rules, rule_sets, sites)
    names = [name for name, _ in root.named_parameters()]
    trained = trained_names(rule_sets, names, head)
    if bypass is not None:
        check_reached(sites.view, bypass, insertions, trained)
    return Patch(
        rules=rules,
        bypass=bypass,
        trained=trained,
        seed=seed,
        blocks=tuple(dict.fromkeys(site.path for site in sites.of("block"))),
        folding=plan_folding(root, sites.view, insertions),
    )


def _numbered(rule_sets: Sequence[RuleSet]) -> Iterator[tuple[RuleSet, int, Rule]]:
    for rule_set in rule_sets:
        for i, rule in enumerate(rule_set.rules):
            yield rule_set, i, rule


class _Planner:
    def __init__(self, root: fx.GraphModule, sites: Sites, form: Form, head: str | None) -> None:
        self.root, self.sites, self.form, self.head = root, sites, form, head
        self.places = Places(root)
        self.attachments = Attachments(sites, self.places, form)
        self.labels: Counter[str] = Counter()

    def rule(self, rule: Rule, where: str, number: int) -> RulePlan:
        reason = refusal(rule.tuner, rule.target)
        if reason is not None:
            raise PlanError(f"{rule.tuner} does not go on {rule.target}", found=reason, where=where)
        if reads_mask(rule.tuner):
            raise RuleError(
                f"{rule.tuner} goes on a bypass alone",
                found=f"a rule at {rule.target}: beside single units no tuner is given their mask",
                where=where,
                fix="name it under `bypass:`",
            )
        if reads_output(rule.tuner) and rule.reads == "input":
            raise RuleError(
                f"{rule.tuner} changes what an operation gives, and this rule lets it read what it is given",
                found="reads: input, which holds where nothing is said",
                where=where,
                fix="write `reads: output` in the rule",
            )
        choice: Choice = choose(rule, self.sites, where)
        text = f"{rule.target} <- {rule.tuner}({', '.join(f'{k}={v}' for k, v in rule.settings.items())})"
        insertions = self._insertions(rule, choice.sites, number, where)
        misses = tuple(self.sites.near_misses(rule.at))
        return RulePlan(text, insertions, choice.skipped, misses, self._notes(rule, insertions))

    def bypass(self, rule_sets: Sequence[RuleSet]) -> BypassPlan | None:
        """The one bypass of all rule sets, if there is one."""
        asked = [(one.bypass, one.document.where(("bypass",))) for one in rule_sets if one.bypass is not None]
        if len(asked) > 1:
            raise PlanError(
                "a model takes one bypass",
                found=f"a second one at {asked[1][1]}",
                where=asked[0][1],
                fix="keep one of them",
            )
        for bypass, where in asked:
            if self.form == "original":
                raise RuleError(
                    "No original form of a bypass",
                    found="it stands beside the network and is never tangled with it",
                    where=where,
                    fix="leave form='original' out",
                )
            return plan_bypass(self.root, self.sites, bypass.completed(), self.head, where)
        return None

    def _insertions(self, rule: Rule, sites: Sequence[Site], number: int, where: str) -> tuple[Insertion, ...]:
        """One tuner a site; or one for all of them."""
        if sites and spans_sites(rule.tuner):
            attachment = self.attachments.through(rule, sites, where)
            return (self._insertion(rule, sites[0], number, attachment),)
        edits: dict[str, list[Edit]] = defaultdict(list)
        insertions = []
        for site in sites:
            attachment = self.attachments.at(rule, site, where)
            home = self.places.home(attachment.region)
            if home != attachment.region and attachment.edit in edits[home]:
                continue  # a module that stands under two names has two sites, and one graph
            edits[home].append(attachment.edit)
            insertions.append(self._insertion(rule, site, number, replace(attachment, region=home)))
        return tuple(insertions)

    def _insertion(self, rule: Rule, site: Site, number: int, attachment: Attachment) -> Insertion:
        return Insertion(
            region=attachment.region,
            label=self._label(attachment.region, f"{site.label}_{rule.tuner}"),
            tuner=rule.tuner,
            settings=dict(rule.settings),
            place=Placement(
                width=site.width,
                heads=site.heads,
                kind=site.kind,
                operation=site.operation.op if site.operation else "",
                path=site.path,
                **attachment.facts,
            ),
            edit=attachment.edit,
            site=site,
            rule=number,
        )

    def _label(self, region: str, wanted: str) -> str:
        key = f"{region}:{wanted}"
        self.labels[key] += 1
        return wanted if self.labels[key] == 1 else f"{wanted}_{self.labels[key]}"

    @staticmethod
    def _notes(rule: Rule, insertions: tuple[Insertion, ...]) -> tuple[str, ...]:
        if rule.reads == "output":
            return ()
        beside = [(i.site.path, i.edit) for i in insertions if isinstance(i.edit, Beside)]
        reading_output = [path for path, edit in beside if edit.source.node == edit.output.node]
        if not reading_output:
            return ()
        return (f"reads the output, for input and output differ in shape, at {', '.join(reading_output)}",)
