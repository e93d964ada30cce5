"""The rule language: which sites, which tuner, what trains, how many are expected. It imports no torch."""

from __future__ import annotations

from typing import Any

from fxtune.rules.bypass import Bypass, Splice, Transition
from fxtune.rules.file import TRAIN_WORDS, Rule, RuleFile
from fxtune.rules.loading import RuleSet, RulesLike, load, shipped
from fxtune.rules.where import Where

__all__ = [
    "TRAIN_WORDS",
    "Bypass",
    "Rule",
    "RuleFile",
    "RuleSet",
    "RulesLike",
    "Splice",
    "Transition",
    "Where",
    "load",
    "schema",
    "shipped",
]


def schema() -> dict[str, Any]:
    """The JSON Schema of a rule file, for editors (``fxtune schema`` prints it)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **RuleFile.model_json_schema()}
