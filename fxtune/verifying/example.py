"""One example: what has to be known to draw its weights and inputs again."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Example(BaseModel):
    """Small plain data, for which there is one set of weights, inputs and directions of the gradient."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(ge=0, description="of all that is drawn")
    sizes: dict[str, int] = Field(
        default={}, description="sizes of dynamic dimensions, `x.shape[0]`: n; the others are as in the example inputs"
    )
    padded: bool = Field(default=True, description="whether padding masks leave something out")

    def __str__(self) -> str:
        return ", ".join(
            [f"seed {self.seed}", *(f"{place} = {size}" for place, size in self.sizes.items())]
            + ([] if self.padded else ["nothing padded"])
        )
