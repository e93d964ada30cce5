"""``lora``: a product of two thin matrices beside a weight, LoRA (Hu et al., ICLR 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fxtune.errors import RuleError
from fxtune.tuners.parting import at_rows, block_diagonal
from fxtune.tuners.placement import Placement
from fxtune.tuners.registry import tuner


@tuner("lora")
class Lora(nn.Module):
    """``s (x Aᵀ) Bᵀ`` beside a linear map, ``s = alpha / r``; r (D_in + D) weights.

    A is r x D_in, Kaiming-uniform as in the paper's code; B is D x r and starts at zero, so the untrained model stays
    bit-equal to the original. On a fused map, of queries, keys and values say, there is one A and one B.

    Args:
        place: where it goes: a linear map from D_in to D channels, or a unit of several operations.
        rank: r.
        alpha: numerator of the factor s; r when left out, which makes s = 1.
        dropout: of x, in training. A sum of weights can have none: the two forms agree where it is off.

    Raises:
        RuleError: the place is a single operation and no linear map.
    """

    maps_widths: ClassVar[bool] = True

    def __init__(
        self,
        place: Placement,
        *,
        rank: Annotated[int, Field(ge=1)] = 8,
        alpha: Annotated[float, Field(gt=0)] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        _check_linear(place)
        self.factor = 1.0 if alpha is None else alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.A = nn.Parameter(torch.empty(rank, place.width_in))
        self.B = nn.Parameter(torch.zeros(place.width, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D_in) to what is added to the operation's output, (B, N, D)."""
        z: Tensor = self.dropout(x.to(self.A.dtype))
        z = self.factor * F.linear(F.linear(z, self.A), self.B)
        return z.to(x.dtype)

    def in_weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Original form: the product added to the weight, ``W + s B A``.

        Args:
            weight: W, D x D_in.
            bias: of the map, D, or None; it stays as it is.

        Returns:
            The two tensors to compute with, in the dtype of W; the sum is taken in the wider dtype.
        """
        wide = torch.promote_types(weight.dtype, self.A.dtype)
        update = self.factor * (self.B.to(wide) @ self.A.to(wide))
        return (weight.to(wide) + update).to(weight.dtype), bias

    @staticmethod
    def parted(weights: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """Of a fused map for some of its channels: a copy of A, and these rows of B."""
        return {"A": weights["A"], "B": weights["B"][rows]}

    @staticmethod
    def joined(
        parts: Sequence[Mapping[str, Tensor]], rows: Sequence[Tensor], settings: Mapping[str, Any], compact: bool
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """For a fused map: one A for all where theirs are equal, else all A under each other and B in blocks.

        The second is exact, too, at the sum of the ranks.
        """
        downs, ups = [part["A"] for part in parts], [part["B"] for part in parts]
        if compact and all(torch.equal(downs[0], down) for down in downs):
            return {"A": downs[0], "B": at_rows(ups, rows)}, dict(settings)
        rank = sum(len(down) for down in downs)
        changed = {**settings, "rank": rank}
        if settings.get("alpha") is not None:  # the factor alpha / r stays as it was
            changed["alpha"] = settings["alpha"] * rank / len(downs[0])
        return {"A": torch.cat(downs), "B": block_diagonal(ups, rows)}, changed


def _check_linear(place: Placement) -> None:
    if place.operation not in ("", "linear"):
        raise RuleError(
            f"The tuner 'lora' goes on linear maps, not on {place.operation!r}",
            found=f"the {place.kind} at `{place.path}` is one operation, {place.operation}",
            fix="choose sites with `at: linear`, or name linear lines of a unit with `on:`; a convolution is linear "
            "where its kernel and stride are 1 and it has no padding or groups",
        )
