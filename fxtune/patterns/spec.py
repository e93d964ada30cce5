"""The form in which patterns are written, in pattern files and in rule files."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _split(words: Any) -> Any:
    return words.split() if isinstance(words, str) else words


Words = Annotated[list[str], BeforeValidator(_split, json_schema_input_type=str | list[str])]
"""Names: a list, or one text with spaces between them."""

OpSets = dict[str, Words]


class PatternSpec(BaseModel):
    """One named pattern: a unit of computation from its inputs to its output."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, frozen=True)

    about: str = Field("", description="what the pattern is, for people")
    inputs: Words = Field(
        alias="in", min_length=1, description="names of the values that it takes in; a tuner reads the first"
    )
    free: Words = Field([], description="further values that its lines may name; nothing is asked of them")
    output: str = Field(alias="out", description="name of the value that it gives")
    dataflow: str | None = Field(None, description="lines `name = op(value, ...)`; or use `any` for alternatives")
    any: dict[str, str] | None = Field(
        None, description="alternatives: a variant's name to its dataflow; the first that matches counts"
    )
    apart: Words = Field(
        [], description="names of lines that may share no operation: paths that part, such as branches"
    )
    where: list[str] = Field([], description="comparisons such as `x.width == y.width`")
    shapes: dict[str, list[str | int]] = Field(
        {}, description="sizes by named dimensions, `...` for any run of them: `x: [B, ..., D]`"
    )


class PatternFile(BaseModel):
    """A file of patterns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fxtune: Literal[1] = Field(description="the version of this form: 1")
    about: str = Field("", description="what the file holds")
    ops: OpSets = Field({}, description="named sets of operators")
    patterns: dict[str, PatternSpec] = Field({}, description="named patterns")
