"""From rules to a patch, and from a patch to a tuned graph: what is done with every capture of one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from fxtune.hoisting import hoist
from fxtune.matching import Sites
from fxtune.patterns import Library, load_patterns
from fxtune.planning import Form, Patch, Place, plan
from fxtune.rewriting import rewrite
from fxtune.rules import RuleSet
from fxtune.tracing import Region
from fxtune.view import view


@dataclass(frozen=True)
class Recipe:
    """Rules, ready to be carried out on any capture of one model: what a further input signature needs.

    Attributes:
        rule_sets: the rules.
        head: module path of the head, if there is one.
        seed: for the weights of new tuners.
        dtype: of the new weights.
        form: of the tuners.
        optimize: whether what the result does not depend on is left out.
        only: the tuners that are put in, by module path, where not all are; the rest is in the weights, say.
    """

    rule_sets: tuple[RuleSet, ...]
    head: str | None
    seed: int | None
    dtype: torch.dtype
    form: Form
    optimize: bool = False
    only: Mapping[str, Place] | None = None

    def library(self) -> Library:
        """The shipped patterns and those of the rule files."""
        return load_patterns(self.rule_sets)

    def sites(self, graph: fx.GraphModule) -> Sites:
        """The sites of a capture."""
        return Sites(view(graph), self.library())

    def plan(self, graph: fx.GraphModule, known: Sites | None = None) -> tuple[Sites, Patch]:
        """The sites of a capture (`known` where they were found already), and what the rules change there."""
        sites = known or self.sites(graph)
        patch = plan(graph, sites, self.rule_sets, head=self.head, seed=self.seed, form=self.form)
        return sites, patch if self.only is None else patch.only(self.only)

    def carry_out(self, graph: Region, patch: Patch) -> tuple[str, ...]:
        """Puts the tuners of a patch in, and leaves out what is then not needed; gives what people should know."""
        rewrite(graph, patch, dtype=self.dtype)
        if not self.optimize and patch.bypass is None:
            return ()
        # A bypass acts on each token alone; what it detaches, the trunk, is optimised only where that is asked for.
        return (str(hoist(graph, through_detach=self.optimize)),)

    def __call__(self, graph: Region) -> Region:
        """The capture with its tuners in."""
        self.carry_out(graph, self.plan(graph)[1])
        return graph
