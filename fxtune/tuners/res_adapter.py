"""``res_adapter``: the bottleneck in its unbound form, Res-Tuning (Jiang et al., 2023), Eq. 6 and 7."""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from fxtune.tuners.placement import Placement
from fxtune.tuners.registry import tuner
from fxtune.tuners.scale import ScaleKind, make_scale, scaled_rows
from fxtune.tuners.widened import widened

_ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}


@tuner("res_adapter")
class ResAdapter(nn.Module):
    """``s ⊙ (φ(x W_down + b_down) W_up + b_up)``; 2Dm + m + D weights, and 0, 1, D or D + 1 of the scale.

    Args:
        place: where it goes; D is its width.
        dim: m, the width of the bottleneck.
        scale: s. A scalar and channel factors start at 1; a number stays what it is.
        init: `zero` (W_up and b_up zero: the untrained model stays bit-equal to the original) or `xavier` as in the
            public release (Xavier-uniform weights, biases of N(0, 1e-6)). W_down, b_down are drawn like the latter
            either way.
        activation: φ.
        dropout: of φ's result, in training.
    """

    narrows: ClassVar[dict[str, dict[str, int | None]]] = {
        "dim": {"down.weight": 0, "down.bias": 0, "up.weight": 1, "up.bias": None}
    }

    def __init__(
        self,
        place: Placement,
        *,
        dim: Annotated[int, Field(ge=1)] = 10,
        scale: ScaleKind = "none",
        init: Literal["zero", "xavier"] = "zero",
        activation: Literal["gelu", "relu"] = "gelu",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(place.width, dim)
        self.activation = nn.Sequential(_ACTIVATIONS[activation](), nn.Dropout(dropout))
        self.up = nn.Linear(dim, place.width)
        self.scale = make_scale(scale, place.width)
        _xavier(self.down)
        _xavier(self.up)
        if init == "zero":
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) to what is added to the operation's output, (B, N, D)."""
        z: Tensor = self.down(x.to(self.up.weight.dtype))
        z = self._up(self.activation(z))
        return z.to(x.dtype)

    def in_sequence(self, y: Tensor) -> Tensor:
        """Original form: a layer behind the operation, ``y + s ⊙ (φ(y W_down + b_down) W_up + b_up)``.

        Sequential adapters (Houlsby et al., ICML 2019; Pfeiffer et al., EACL 2021): the layer has a residual connection
        of its own, takes the operation's output (B, N, D) and gives what goes on in its place, (B, N, D).
        """
        h: Tensor = y.to(self.down.weight.dtype)
        h = self.activation(self.down(h))
        h = y + self._up(h)
        return h.to(y.dtype)

    def _up(self, h: Tensor) -> Tensor:
        """``s ⊙ (h W_up + b_up)``."""
        return scaled_rows(self.scale, partial(widened, h), self.up.weight.t(), self.up.bias)


def _xavier(layer: nn.Linear) -> None:
    nn.init.xavier_uniform_(layer.weight)
    nn.init.normal_(layer.bias, std=1e-6)
