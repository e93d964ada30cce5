"""Random rule files: every tuner at every kind of site that takes it, with settings that it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import strategies as st
from pydantic import TypeAdapter

from fxtune import tuners
from fxtune.errors import RuleError

SITES = ("mha", "ffn", "block", "conv_mixer")
"""The kinds of sites that the shipped patterns name for rules."""


def rule_files(
    *,
    inserts: Sequence[str] | None = None,
    at: Sequence[str] = SITES,
    blocks: int | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> st.SearchStrategy[dict[str, Any]]:
    """A strategy for valid rule files, as dicts that `fxtune.apply` takes for ``rules``.

    Each tuner is drawn at the kinds of sites that it can stand on in any model that has them; a model may still lack a
    site or a use of it, and `fxtune.apply` then says so.

    Args:
        inserts: names of tuners, your own as well; by default those that fxtune ships.
        at: kinds of sites, your own patterns as well.
        blocks: how many blocks the models have that the rules are for: then rules also choose among these. By default
            they take every site, for a rule that leaves out all of a model's sites is an error there.
        fixed: settings that every tuner which has them is given: ``{"init": "zero"}``.
    """
    names = tuners.shipped() if inserts is None else inserts
    kinds = {name: stands for name in names if (stands := [kind for kind in at if _stands(name, kind)])}
    pairs = st.sampled_from(sorted(kinds)).flatmap(lambda name: st.tuples(st.just(name), st.sampled_from(kinds[name])))
    rule = pairs.flatmap(lambda pair: _rule(*pair, blocks, fixed or {}))
    listed = st.lists(rule, min_size=1, max_size=3).map(_one_in_the_softmax)
    return st.fixed_dictionaries(
        {"fxtune": st.just(1), "name": st.just("drawn"), "rules": listed},
        optional={"train": st.sampled_from([["tuners"], ["tuners", "head if any"]])},
    )


def _stands(name: str, kind: str) -> bool:
    if tuners.refusal(name, kind) is not None or tuners.reads_mask(name):  # or it goes on a bypass alone
        return False
    if tuners.spans_sites(name):
        return kind == "block"
    if not tuners.offers(name, "forward"):  # it lives in an attention alone
        return kind in ("mha", "block")
    return kind not in ("block", "conv_mixer") or not tuners.maps_widths(name)  # there positions may change


def _one_in_the_softmax(drawn: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Two tuners in one softmax are not defined: of such rules the first stays."""
    kept: list[dict[str, Any]] = []
    for rule in drawn:
        inside = [_in_softmax(next(iter(other["insert"])), other["at"]) for other in (*kept, rule)]
        if not (inside[-1] and any(inside[:-1])):
            kept.append(rule)
    return kept


def _in_softmax(name: str, kind: str) -> bool:
    return tuners.offers(name, "attend") and (kind == "mha" or not tuners.offers(name, "forward"))


def _rule(name: str, kind: str, blocks: int | None, fixed: Mapping[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    given: dict[str, st.SearchStrategy[Any]] = {}
    free: dict[str, st.SearchStrategy[Any]] = {}
    for setting, (annotation, _) in tuners.settings(name).items():
        if setting in fixed:
            given[setting] = st.just(fixed[setting])
        elif (values := setting_values(annotation)) is not None:
            free[setting] = values
    # A few settings are refused on one kind of site only; the tuner itself knows.
    settings = st.fixed_dictionaries(given, optional=free).filter(lambda values: _builds(name, kind, values))
    insert = st.fixed_dictionaries({name: settings})
    needed = {"at": st.just(kind), "insert": insert}
    more: dict[str, st.SearchStrategy[Any]] = {}
    if tuners.reads_output(name):
        needed["reads"] = st.just("output")
    elif not _in_softmax(name, kind):
        more["reads"] = st.sampled_from(["input", "output"])
    if blocks is not None and not tuners.spans_sites(name):  # which takes all blocks between its first and its last
        more["where"] = _where(blocks)
    return st.fixed_dictionaries(needed, optional=more)


def _builds(name: str, kind: str, settings: Mapping[str, Any]) -> bool:
    inside = _in_softmax(name, kind)
    place = tuners.Placement(8, 2, kind, kv_heads=2 if inside else 1, head_dim=4 if inside else 0)
    try:
        tuners.build(name, settings, place, device="meta")
    except RuleError:
        return False
    return True


def _where(blocks: int) -> st.SearchStrategy[dict[str, Any]]:
    """Conditions that leave one of so many blocks at least."""
    last = blocks - 1
    some = st.sets(st.integers(0, last), min_size=1).map(sorted)
    chosen = st.one_of(
        some,
        st.integers(1, blocks).map(lambda count: f"first {count}"),
        st.integers(0, last).map(lambda first: f"{first}.."),
        st.tuples(st.integers(0, last), st.integers(0, last)).map(lambda ends: f"{min(ends)}..{max(ends)}"),
    )
    dropped = st.sets(st.integers(0, last), min_size=1, max_size=last).map(sorted) if last else st.just([blocks])
    return st.one_of(chosen.map(lambda numbers: {"blocks": numbers}), dropped.map(lambda numbers: {"drop": numbers}))


def setting_values(annotation: Any) -> st.SearchStrategy[Any] | None:
    """Small values that a setting of this annotation takes; None for one that only its default is known to fit."""
    return _values(TypeAdapter(annotation).json_schema())


def _values(schema: Mapping[str, Any]) -> st.SearchStrategy[Any] | None:
    if "anyOf" in schema:
        alternatives = [values for choice in schema["anyOf"] if (values := _values(choice)) is not None]
        return st.one_of(alternatives) if alternatives else None
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    match schema.get("type"):
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            # From 2 on: the softmax over a prefix of one token is 1 whatever its key, which then never trains.
            low = max(2, schema.get("minimum", 0), schema.get("exclusiveMinimum", -1) + 1)
            high = min(schema.get("maximum", low + 6), schema.get("exclusiveMaximum", low + 7) - 1)
            return st.integers(min(low, high), high)
        case "number":
            low = max(schema.get("minimum", 0.0), schema.get("exclusiveMinimum", 0.0))
            high = min(schema.get("maximum", low + 2.0), schema.get("exclusiveMaximum", low + 2.0))
            return st.floats(low + (high - low) / 8, high - (high - low) / 8)
    return None
