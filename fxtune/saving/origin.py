"""How a tuned model was made: all that `apply` needs to make it again on the same backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from fxtune.planning import Insertion
from fxtune.rules import RuleFile, RuleSet
from fxtune.saving.inputs import DtypeName, InputsSpec, drawn
from fxtune.saving.standing import Standing
from fxtune.structure import Structure


class Origin(BaseModel):
    """The arguments of `apply`, as plain data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: list[RuleFile] = Field(
        min_length=1, description="the rule sets, overrides and the model card's hints put in"
    )
    head: str | None = None
    num_classes: int | None = Field(default=None, ge=1)
    dtype: DtypeName = "float32"
    batchnorm: Literal["frozen", "track"] = "frozen"
    form: Literal["unbound", "original"] = "unbound"
    optimize: bool = False
    inputs: InputsSpec | None = Field(default=None, description="example inputs other than the model card's own")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of new weights."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found

    def example_inputs(self) -> Any:
        """Inputs of the kinds that the model was captured with; None for the model card's."""
        return None if self.inputs is None else drawn(self.inputs)

    def rule_data(self) -> list[dict[str, Any]]:
        """The rule sets as `apply` takes them."""
        return [file.model_dump(mode="json", by_alias=True, exclude_defaults=True) for file in self.rules]


def rule_files(rule_sets: Sequence[RuleSet]) -> list[RuleFile]:
    """Rule sets as they would be written in files, with all that was put into them since."""
    return [
        RuleFile(
            fxtune=1,
            name=rules.name,
            about=rules.about,
            train=list(rules.train),
            rules=list(rules.rules),
            bypass=rules.bypass,
            ops={name: list(operators) for name, operators in rules.ops.items()},
            patterns=dict(rules.patterns),
        )
        for rules in rule_sets
    ]


@dataclass(frozen=True)
class Made:
    """What a tuned model was made by and of.

    Attributes:
        origin: the arguments of `apply`.
        computing: what the backbone computed then, node by node.
        insertions: its tuners, and what each of them stands at.
        structure: what it computed, whatever it is called there.
        standings: where in the structure the tuners stand.
    """

    origin: Origin
    computing: tuple[str, ...]
    insertions: tuple[Insertion, ...]
    structure: Structure
    standings: Mapping[str, Standing]
