"""Which of a pattern's sites a rule means."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, StrictStr

from fxtune.rules.numbers import NumberSet, spans


def _no_bare_number(numbers: Any) -> Any:
    if isinstance(numbers, int):
        raise ValueError(f"'first {numbers}' or [{numbers}]: a bare number could mean either")
    return numbers


def _readable(numbers: NumberSet) -> NumberSet:
    spans(numbers)
    return numbers


Numbers = Annotated[
    NumberSet, BeforeValidator(_no_bare_number, json_schema_input_type=NumberSet), AfterValidator(_readable)
]


def _one_width(width: int | str) -> int | str:
    if isinstance(width, str) and (len(spans(width)) != 1 or "first" in width):
        raise ValueError("expected a width such as 768, or a range such as '320..640'")
    return width


class Where(BaseModel):
    """Chooses sites: those that meet every condition given. Blocks and stages count from 0, ranges are inclusive."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    blocks: Numbers | None = Field(
        default=None, description="the blocks to use: '0..11', '0, 3, 5..7', '6..', 'first 6', or a list of integers"
    )
    drop: Numbers | None = Field(default=None, description="the blocks to leave out, written as `blocks`")
    stages: Numbers | None = Field(
        default=None, description="the stages to use (ConvNeXt, ResNet, U-Net), written as `blocks`"
    )
    width: Annotated[StrictInt | StrictStr, AfterValidator(_one_width)] | None = Field(
        default=None, description="the channels of the site: 768, or a range '320..640'"
    )
    path: str | list[str] | None = Field(
        default=None,
        description="a glob over the site's module path, case and all, or several of which one must fit; * also runs "
        "across dots: '*.attn2'",
    )
    variant: str | None = Field(default=None, description="the variant of the pattern that matched")

    def beyond(self, *, blocks: int, stages: int) -> str | None:
        """What these conditions name that a model with so many blocks and stages lacks; None if nothing."""
        for name, numbers, many in (
            ("blocks", self.blocks, blocks),
            ("drop", self.drop, blocks),
            ("stages", self.stages, stages),
        ):
            last = max((span.first if span.last is None else span.last for span in spans(numbers or [])), default=-1)
            if last >= many:
                thing = "stage" if name == "stages" else "block"
                return f"`{name}: {numbers}` names {thing} {last}, and there are {many}, counted from 0"
        return None

    def refusal(
        self, *, block: int | None, stage: int | None, width: int, path: str, variant: str | None
    ) -> str | None:
        """Why these conditions leave a site out; None when they choose it.

        `block` and `stage` are None for a site that lies in none: then `blocks` and `stages` leave it out, `drop` does
        not.
        """
        if self.blocks is not None and not _within(block, self.blocks):
            return f"{_place('block', block)} is not among blocks {self.blocks}"
        if self.drop is not None and _within(block, self.drop):
            return f"block {block} is dropped ({self.drop})"
        if self.stages is not None and not _within(stage, self.stages):
            return f"{_place('stage', stage)} is not among stages {self.stages}"
        if self.width is not None and not _within(width, str(self.width)):
            return f"width {width} is not {self.width}"
        if self.path is not None and not any(fnmatchcase(path, glob) for glob in _listed(self.path)):
            return f"module path {path!r} does not fit {self.path!r}"
        if self.variant is not None and variant != self.variant:
            return f"variant {variant!r} is not {self.variant!r}"
        return None


def _listed(globs: str | list[str]) -> list[str]:
    return [globs] if isinstance(globs, str) else globs


def _within(number: int | None, numbers: NumberSet) -> bool:
    return number is not None and any(number in span for span in spans(numbers))


def _place(kind: str, number: int | None) -> str:
    return f"a site in no {kind}" if number is None else f"{kind} {number}"
