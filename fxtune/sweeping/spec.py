"""The form of a sweep: one model and one set of data, by several rules, seeds and settings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _each_once(values: list[Any]) -> list[Any]:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"expected each entry once, not {value!r} again")
    return values


def _unseeded(values: dict[str, Any]) -> dict[str, Any]:
    if "seed" in values:
        raise ValueError("expected the seeds under `seeds: [0, 1, 2]`")
    return values


class Sweep(BaseModel):
    """A sweep for fxtune: the same training by several rules, seeds and settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fxtune: Literal[1] = Field(description="the version of this form: 1")
    name: str = Field(min_length=1, description="its name, which stands over the table")
    about: str = Field(default="", description="one or two sentences on what it is for")
    model: str = Field(description="a name that the command line takes; module:factory for one of your own")
    data: str | dict[str, Any] = Field(description="what `fxtune tune` takes, or a source with its options")
    recipe: str | dict[str, Any] | None = Field(
        default=None, description="a shipped recipe, a file, or a recipe; by default the usual one for such data"
    )
    settings: Annotated[dict[str, Any], AfterValidator(_unseeded)] = Field(
        default={}, description="changes of the recipe, by dotted names"
    )
    rules: Annotated[list[str | list[str]], Field(min_length=1), AfterValidator(_each_once)] = Field(
        description="rule sets or rule files, a row of the table each; a list is several at once"
    )
    seeds: Annotated[list[int], Field(min_length=1), AfterValidator(_each_once)] = Field(
        default=[0], description="each training is done with each of them"
    )
    grid: Annotated[
        dict[str, Annotated[list[Any], Field(min_length=1), AfterValidator(_each_once)]], AfterValidator(_unseeded)
    ] = Field(
        default={},
        description="settings of the recipe to choose from, by the mean on `val` over the seeds: "
        "{optimizer.lr: [0.05, 0.01, 0.005, 0.001]}",
    )
    over: dict[str, Annotated[list[Any], Field(min_length=1), AfterValidator(_each_once)]] = Field(
        default={}, description="options of the data, with rows of their own for each: {shots: [1, 2, 4, 8, 16]}"
    )
    redraw: bool = Field(
        default=False, strict=True, description="each seed also draws the data's shots, parts and limits anew"
    )
    tokenizer: str | None = Field(default=None, description="folder of the tokenizer; by default the model's own")
    splits: Annotated[list[str], Field(min_length=1), AfterValidator(_each_once)] | Literal["all"] = Field(
        default=["test"],
        description="the splits that the table tells, the plots the first of them; `all` are all that "
        "neither train nor choose",
    )
