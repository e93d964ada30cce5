"""The schema of a model card."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Path = Annotated[str, StringConstraints(pattern=r"^[\w{}]+(\.[\w{}]+)*$")]
"""A dotted attribute path from the model, ``config.image_size.0``; ``{path}`` in it is the text at that path."""

Scalar = bool | int | float | str


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Recognise(_Part):
    """Which models a card is for."""

    classes: list[str] = Field(
        min_length=1, description="globs over module.QualifiedName of the model's class or a base class of it"
    )
    excluding: list[str] = Field(
        default=[], description="globs over the name of the model's own class, which are left out"
    )
    attributes: dict[Path, Scalar] = Field(default={}, description="attributes that the model must have (text: a glob)")


class Size(_Part):
    """A size that the model's own configuration tells."""

    read: list[Path] = Field(min_length=1, description="attribute paths; the first that holds an integer counts")
    minus: dict[str, int] = Field(default={}, description="other sizes to take off, each with how often")
    default: int | None = Field(default=None, description="the size where no path holds one", gt=0)


class Input(_Part):
    """One tensor of the example inputs."""

    name: Path = Field(description="keyword; a dotted one lies in a dict (`added.text_embeds`)")
    positional: bool = Field(default=False, description="whether it is passed by position, in the order of the card")
    values: Literal["normal", "integers", "mask"] = Field(
        description="normal: floating point in the model's dtype; integers: 0 to below - 1; mask: ones, one padded"
    )
    shape: list[str | int] = Field(min_length=1, description="names of sizes, or numbers")
    below: str | int | None = Field(default=None, description="for integers: a size's name, or a number")
    when: dict[Path, Scalar] = Field(
        default={}, description="attributes without which the input is left out (text: a glob)"
    )

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if (self.values == "integers") != (self.below is not None):
            raise ValueError("expected `below` with `values: integers`, and only there")
        return self


class Small(_Part):
    """A small member of the family for tests: a call, written ``package.module.name``.

    An argument may be a mapping, also inside others: ``{call: ..., arguments: ...}`` stands for the result of that
    call, ``{draw: name}`` for a choice of that draw, ``{product: [name, 4]}`` for choices and numbers multiplied.
    """

    call: Path
    arguments: dict[str, Any] = {}
    draws: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        default={},
        description="what `fxtune.testing.small_models` varies: by name, the choices, the first of which is the usual "
        "one. A member without draws is one model, and is drawn only where its card is named",
    )

    @model_validator(mode="after")
    def _draws_exist(self) -> Self:
        if unknown := sorted(set(_draws_in(self.arguments)) - set(self.draws)):
            raise ValueError(f"expected every draw under `draws`, where these are missing: {', '.join(unknown)}")
        return self


class BypassHints(_Part):
    """What a detached bypass does on this family where its rule leaves it open."""

    along: str | None = Field(default=None, description="the pattern that it runs along")
    paths: list[str] = Field(default=[], description="globs over the module paths of its stems")
    splice: Literal["replace", "gated"] | None = Field(default=None, description="how it ends")
    transition: Literal["bottleneck", "linear"] | None = Field(default=None, description="how channels are mapped")


def _draws_in(arguments: Any) -> Iterator[str]:
    match arguments:
        case {"draw": name}:
            yield name
        case {"product": factors}:
            yield from (factor for factor in factors if isinstance(factor, str))
        case dict():
            for value in arguments.values():
                yield from _draws_in(value)
        case list():
            for value in arguments:
                yield from _draws_in(value)


class Card(_Part):
    """One backbone family."""

    fxtune: Literal[1] = Field(description="version of the card format: 1")
    card: str = Field(description="the card's name")
    about: str = Field(description="one line on the family")
    fallback: bool = Field(default=False, description="whether it counts only where no other card fits")
    recognise: Recognise
    sizes: dict[str, int | Size] = Field(default={}, description="named sizes: numbers, or where to read them")
    inputs: list[Input] = Field(min_length=1)
    head: list[Path] | None = Field(
        default=None,
        description="module paths; the first that has weights is the head. An empty list: the family has none",
    )
    logits: list[Path] = Field(
        default=[], description="for a head of several layers: paths of the layer as wide as the classes"
    )
    class_counts: list[Path] = Field(default=[], description="attributes that hold the number of classes")
    component: str | None = Field(
        default=None, description="what a pipeline calls such a model; names in LoRA files of pipelines begin so"
    )
    bypass: BypassHints = BypassHints()
    small: list[Small] = Field(default=[], description="small members for tests")

    @model_validator(mode="after")
    def _sizes_exist(self) -> Self:
        used = {size for entry in self.inputs for size in (*entry.shape, entry.below) if isinstance(size, str)}
        used |= {other for size in self.sizes.values() if isinstance(size, Size) for other in size.minus}
        if unknown := sorted(used - set(self.sizes)):
            raise ValueError(
                f"expected every size that is used under `sizes`, where these are missing: {', '.join(unknown)}"
            )
        return self
