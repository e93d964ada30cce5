"""How a rule file names a tuner with its settings."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

Tuner = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


def _with_settings(insert: Any) -> Any:
    """``res_adapter`` and ``{res_adapter: null}`` as ``{res_adapter: {}}``."""
    if isinstance(insert, str):
        return {insert: {}}
    if isinstance(insert, dict):
        return {name: {} if settings is None else settings for name, settings in insert.items()}
    return insert


def _just_one(insert: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    if len(insert) != 1:
        raise ValueError(f"expected exactly one tuner, with its settings, not {len(insert)}; write one rule for each")
    return insert


Insert = Annotated[
    dict[Tuner, dict[str, Any]],
    BeforeValidator(_with_settings, json_schema_input_type=Tuner | dict[Tuner, dict[str, Any] | None]),
    AfterValidator(_just_one),
]
"""One tuner: its name, or ``{name: {setting: value}}``."""
