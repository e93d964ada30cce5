"""From what a caller hands over (a shipped name, a path, a dict, or a list of these) to rule sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fxtune import source
from fxtune.errors import RuleError
from fxtune.patterns import PatternSpec
from fxtune.resources import rules_dir
from fxtune.rules.bypass import Bypass
from fxtune.rules.file import Rule, RuleFile
from fxtune.source import Document

RulesLike = str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class RuleSet:
    """A rule file, read."""

    name: str
    about: str
    train: tuple[str, ...]
    """Words of `TRAIN_WORDS` and globs over parameter names."""
    rules: tuple[Rule, ...]
    bypass: Bypass | None
    ops: Mapping[str, Sequence[str]]
    patterns: Mapping[str, PatternSpec]
    """Patterns of the file's own; they lie in `document` at ``("patterns", name)``."""
    document: Document
    origin: Literal["shipped", "file", "dict"]

    def completed(self, **hints: Any) -> RuleSet:
        """With what its bypass leaves open filled in (`Bypass.completed`)."""
        return self if self.bypass is None else replace(self, bypass=self.bypass.completed(**hints))

    def place(self, rule: int, *more: str | int) -> str:
        """Where rule number `rule` (or a part of it) was written: ``file:line:col``."""
        return self.document.where(("rules", rule, *more))


def load(rules: RulesLike | Sequence[RulesLike]) -> list[RuleSet]:
    """The rule sets that `rules` names, in order.

    Args:
        rules: a shipped rule set's name (``"tri_res"``); the path of a YAML file (a Path, or text that ends in .yaml
            or .yml or has a separator in it); a dict of the same form, in which ``fxtune: 1`` and ``name`` may be left
            out; or a sequence of these.

    Raises:
        RuleError: no rule set is called so, with the closest names; or one is named twice.
        SourceError: a file is broken; file, line, column and what was expected.
    """
    if isinstance(rules, str | Path | Mapping):
        return [_one(rules)]
    if not isinstance(rules, Sequence) or not rules:
        raise RuleError(
            "rules= names nothing", found=repr(rules), fix="pass a shipped name, a path, a dict or a list of these"
        )
    found = [_one(item) for item in rules]
    _check_once(found)
    return found


def _check_once(rule_sets: Sequence[RuleSet]) -> None:
    """Each rule set once: named twice by mistake, every tuner of it would be there twice."""
    for i, rule_set in enumerate(rule_sets):
        for other in rule_sets[:i]:
            if (other.name, other.rules, other.bypass) == (rule_set.name, rule_set.rules, rule_set.bypass):
                raise RuleError(
                    f"rules= names the rule set {rule_set.name!r} twice",
                    found="the same rules both times: each of its tuners would stand beside one like it",
                    where=rule_set.document.name,
                    fix="name it once; for two tuners at one place write two rules in a file of your own",
                )


def shipped() -> list[RuleSet]:
    """All rule sets that fxtune ships, by name."""
    return [_read(source.load(path), "shipped") for path in sorted(rules_dir().glob("*.yaml"))]


def _one(rules: RulesLike) -> RuleSet:
    if isinstance(rules, Mapping):
        return _read(source.from_data({"fxtune": 1, "name": "rules", **rules}), "dict")
    if isinstance(rules, Path) or (isinstance(rules, str) and _is_path(rules)):
        return _read(source.load(Path(rules).expanduser()), "file")
    if not isinstance(rules, str):
        raise RuleError(
            "rules= takes names, paths and dicts", found=f"{rules!r}", fix="pass a shipped name, a path or a dict"
        )
    names = [path.stem for path in rules_dir().glob("*.yaml")]
    if rules in names:
        return _read(source.load(rules_dir() / f"{rules}.yaml"), "shipped")
    near = source.nearest(rules, names)
    raise RuleError(
        f"No rule set is called {rules!r}",
        found=f"the closest names are {', '.join(near)}" if near else "no name is close to it",
        fix="`fxtune methods` lists the shipped rule sets; the path of a file of your own ends in .yaml",
    )


def _is_path(text: str) -> bool:
    return text.endswith((".yaml", ".yml")) or "/" in text or "\\" in text


def _read(document: Document, origin: Literal["shipped", "file", "dict"]) -> RuleSet:
    file = document.validate(RuleFile)
    return RuleSet(
        file.name,
        file.about,
        tuple(file.train),
        tuple(file.rules),
        file.bypass,
        file.ops,
        file.patterns,
        document,
        origin,
    )
