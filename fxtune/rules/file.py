"""The form of a rule file. Tuners and their settings are checked later, where the tuners are known."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fxtune.patterns import OpSets, PatternSpec, Words
from fxtune.rules.bypass import Bypass
from fxtune.rules.insert import Insert
from fxtune.rules.where import Where
from fxtune.source import nearest

TRAIN_WORDS = {
    "tuners": "every weight that the rules insert",
    "head": "the head; an error on a model without one",
    "head if any": "the head, where the model has one",
    "all": "every weight of the model, and the tuners",
}
"""What `train` may name; every other entry is a glob over the model's parameter names."""


def _no_slip(train: list[str]) -> list[str]:
    for i, entry in enumerate(train):
        if entry in train[:i]:
            raise ValueError(f"expected each entry once, not {entry!r} again")
        # A glob that matches no parameter is caught on the model; a misspelt word can be caught here.
        if entry not in TRAIN_WORDS and not set(entry) & set(".*?[") and (near := nearest(entry, TRAIN_WORDS, 1)):
            words = ", ".join(TRAIN_WORDS)
            raise ValueError(
                f"expected one of {words} or a glob such as '*.bias', not {entry!r} (nearest: {near[0]!r})"
            )
    return train


def _each_once(sizes: list[int]) -> list[int]:
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"expected each size once, not {sizes}")
    return sizes


def _one_setting(choices: dict[str, list[int]]) -> dict[str, list[int]]:
    if len(choices) > 1:
        raise ValueError("expected one size of the tuner; write one rule for each")
    return choices


Size = Annotated[int, Field(ge=0, strict=True)]
Choices = Annotated[
    dict[str, Annotated[list[Size], Field(min_length=1), AfterValidator(_each_once)]], AfterValidator(_one_setting)
]
"""``{setting: sizes}``."""


class Rule(BaseModel):
    """One line of the work: at these sites, insert this tuner."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: str = Field(min_length=1, description="a pattern: mha, ffn, block, conv_mixer, or one under `patterns`")
    on: Words = Field(
        default=[],
        min_length=1,
        description="lines of the pattern: the tuner goes on these operations inside of the unit, one by one, instead "
        "of on the unit; the dots before a name may be left out where it is unique: [q_proj, v_proj]",
    )
    where: Where = Field(default=Where(), description="which of the pattern's sites; all of them when left out")
    insert: Insert = Field(description="one tuner: its name, or {name: {setting: value}}")
    choices: Choices = Field(
        default={},
        description="the sizes that a search may choose from in each block, {dim: [0, 1, 5, 10]}; none is larger than "
        "the tuner, and 0 leaves it out. `apply` alone puts in the tuner as it is",
    )
    reads: Literal["input", "output"] = Field(
        default="input", description="what the tuner reads: the operation's input (Eq. 7) or its output (Eq. 6)"
    )
    expect: Annotated[int, Field(ge=1, strict=True)] | Literal["every block"] | None = Field(
        default=None, description="how many sites must match: a number, or 'every block' for one in each chosen block"
    )
    required: bool = Field(
        default=False,
        strict=True,
        description="whether a model without any match is an error; else the rule is skipped there",
    )
    unless: str | None = Field(
        default=None,
        min_length=1,
        description="a pattern: the rule is skipped in a model that has sites of it, whatever else it asks for",
    )

    @property
    def target(self) -> str:
        """What the rule is at, in a word: ``mha``, or ``mha.q_proj, v_proj``."""
        return f"{self.at}.{', '.join(self.on)}" if self.on else self.at

    @property
    def tuner(self) -> str:
        """The name of the tuner that is inserted."""
        return next(iter(self.insert))

    @property
    def settings(self) -> dict[str, Any]:
        """The tuner's settings, as far as the rule gives them."""
        return self.insert[self.tuner]


class RuleFile(BaseModel):
    """A rule set for fxtune: where which tuners go, and what trains."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fxtune: Literal[1] = Field(description="the version of this form: 1")
    name: str = Field(min_length=1, description="the name of the rule set")
    about: str = Field(default="", description="one or two sentences on what it does, and its source")
    train: Annotated[list[str], AfterValidator(_no_slip)] = Field(
        default=["tuners", "head if any"],
        min_length=1,
        description="what trains: "
        + "; ".join(f"`{word}`: {meaning}" for word, meaning in TRAIN_WORDS.items())
        + "; or globs over parameter names such as '*.bias'",
    )
    rules: list[Rule] = Field(default=[], description="the rules; each inserts one tuner at the sites of one pattern")
    bypass: Bypass | None = Field(
        default=None, description="a detached bypass beside the whole network; at most one in all rule sets of a model"
    )
    ops: OpSets = Field(default={}, description="named sets of operators, for the patterns of this file")
    patterns: dict[str, PatternSpec] = Field(
        default={}, description="patterns of this file's own, by name, for `at`; they may use the shipped ones"
    )
