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
from fxtune.matching import Convolution
from fxtune.tuners.parting import at_rows, block_diagonal
from fxtune.tuners.placement import Placement
from fxtune.tuners.registry import tuner
from fxtune.tuners.widened import widened

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
"""By the number of axes of positions."""


@tuner("lora")
class Lora(nn.Module):
    """``s (x Aᵀ) Bᵀ`` beside a linear map, ``s = alpha / r``; r (D_in + D) weights.

    A is r x D_in, Kaiming-uniform as in the paper's code; B is D x r and starts at zero, so the untrained model stays
    bit-equal to the original. On a fused map, of queries, keys and values say, there is one A and one B.

    Beside a convolution A is one of its own shape from D_in to r channels, r x D_in/g x k x k for g groups, and B is a
    convolution of kernel 1; r (k² D_in/g + D) weights. With one group they are PEFT's ``lora_A`` and ``lora_B``, the
    latter without its last two axes. With more, all groups share A, so that B A has the shape of the weight and rank r,
    whatever g is. (PEFT's A then reads all channels for every group, which is no change of the weight.)

    Args:
        place: where it goes: a linear map from D_in to D channels, a convolution, or a unit of several operations.
        rank: r, at most that of the layer's own weight as a matrix, D x (k² D_in/g).
        alpha: numerator of the factor s; r when left out, which makes s = 1.
        dropout: of x, in training. A sum of weights can have none: the two forms agree where it is off.

    Raises:
        RuleError: the place is a single operation of another kind, or the rank is larger than the layer's.
    """

    maps_widths: ClassVar[bool] = True
    narrows: ClassVar[dict[str, dict[str, int | None]]] = {"rank": {"A": 0, "B": 1}}

    def __init__(
        self,
        place: Placement,
        *,
        rank: Annotated[int, Field(ge=1)] = 8,
        alpha: Annotated[float, Field(gt=0)] | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        _check_operation(place)
        self.convolution = place.convolution
        groups, kernel = (self.convolution.groups, self.convolution.kernel) if self.convolution else (1, ())
        reads = (place.width_in // groups, *kernel)
        _check_rank(rank, place, math.prod(reads))
        self.alpha = alpha
        self.dropout = nn.Dropout(dropout)
        self.A = nn.Parameter(torch.empty(rank, *reads))
        self.B = nn.Parameter(torch.zeros(place.width, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    @property
    def factor(self) -> float:
        """s, of the rank that there is; without any rank there is nothing that it could scale."""
        rank = self.A.shape[0]
        return 1.0 if self.alpha is None or rank == 0 else self.alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D_in) to what is added to the operation's output, (B, N, D)."""
        z: Tensor = self.dropout(x.to(self.A.dtype))
        z = widened(F.linear(z, self.A), self.factor * self.B.t())
        return z.to(x.dtype)

    def on_map(self, x: Tensor) -> Tensor:
        """A map (B, D_in, H, W), or of other positions, to what is added to the convolution's, (B, D, H', W')."""
        assert self.convolution is not None
        z: Tensor = self.dropout(x.to(self.A.dtype))
        if self.convolution.groups == 1:
            thin = _convolve(z, self.A, self.convolution)
            rows = self.factor * self.B
            z = _CONVOLVE[thin.dim() - 2](thin, rows.reshape(*rows.shape, *(1 for _ in thin.shape[2:])))
        else:
            # Each group would have r maps of its own between A and B: their product is smaller.
            z = _convolve(z, self.factor * self._product(self.B.dtype), self.convolution)
        return z.to(x.dtype)

    def in_weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Original form: the product added to the weight, ``W + s B A``.

        Args:
            weight: W, D x D_in; of a convolution D x D_in/g x k x k.
            bias: of the map, D, or None; it stays as it is.

        Returns:
            The two tensors to compute with, in the dtype of W; the sum is taken in the wider dtype.
        """
        wide = torch.promote_types(weight.dtype, self.A.dtype)
        update = self.factor * self._product(wide).reshape(weight.shape)
        return (weight.to(wide) + update).to(weight.dtype), bias

    def _product(self, dtype: torch.dtype) -> Tensor:
        """B A, in the shape of the layer's weight."""
        product = self.B.to(dtype) @ self.A.to(dtype).flatten(1)
        return product.reshape(-1, *self.A.shape[1:])

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


def _convolve(x: Tensor, weight: Tensor, like: Convolution) -> Tensor:
    convolve: Any = _CONVOLVE[len(like.kernel)]
    made: Tensor = convolve(x, weight, None, like.stride, like.padding, like.dilation, like.groups)
    return made


def _check_operation(place: Placement) -> None:
    if place.operation not in ("", "linear") and place.convolution is None:
        raise RuleError(
            f"The tuner 'lora' goes on linear maps and on the input of convolutions, not on {place.operation!r}",
            found=f"the {place.kind} at `{place.path}` is one operation, {place.operation}",
            fix="choose sites with `at: linear` or `at: convolution` (not a transposed one), or name linear lines of a "
            "unit with `on:`; leave `reads: output` out",
        )


def _check_rank(rank: int, place: Placement, columns: int) -> None:
    largest = min(place.width, columns)
    if rank > largest:
        raise RuleError(
            f"The tuner 'lora' cannot have rank {rank} here",
            found=f"the weight of the {place.kind} at `{place.path}`, as a matrix, is {place.width} x {columns}",
            fix=f"rank: {largest} is the largest that it can have",
        )
