"""LoRA on a model, whatever file it comes from or goes to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fxtune.errors import CheckpointError


@dataclass(frozen=True)
class LowRank:
    """What LoRA adds to one weight, ``alpha / r · B A``, as the files hold it.

    Attributes:
        down: A, r x D_in; for a convolution r x D_in x k x k, also where k is 1.
        up: B, D x r; for a convolution D x r x 1 x 1.
        alpha: numerator of the factor.
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """r."""
        return self.down.shape[0]


@dataclass(frozen=True)
class Adapter:
    """LoRA on a model, and the weights that changed beside it.

    Attributes:
        path: of the file that the tensors come from.
        maps: module path -> what is added to its weight.
        others: state_dict name -> a weight of the model's own that is replaced.
        whole: the modules that must come whole among the others, as ends of module paths.
        dropout: of what LoRA reads, in training.
    """

    path: Path
    maps: Mapping[str, LowRank]
    others: Mapping[str, Tensor]
    whole: tuple[str, ...] = ()
    dropout: float = 0.0


@dataclass(frozen=True)
class Placed:
    """An adapter's weights under the names that a tuned model has for them.

    Attributes:
        path: of the file that they come from.
        weights: state_dict name -> weight.
    """

    path: Path
    weights: Mapping[str, Tensor]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each weight."""
        return {name: tuple(weight.shape) for name, weight in self.weights.items()}

    def tensors(self) -> dict[str, Tensor]:
        """The weights."""
        return dict(self.weights)

    def contradiction(self, found: str) -> CheckpointError:
        """What to raise where the model has no place for one of them."""
        return CheckpointError(
            "these weights are not those of this model",
            found=found,
            where=str(self.path),
            fix="load them on the architecture that they were trained on, with the same head",
        )


def as_trained(low: LowRank, reads: tuple[int, ...], width: int) -> tuple[Tensor, Tensor] | None:
    """A and B as the tuner has them; None where they are of other shapes.

    Args:
        low: the pair as a file holds it. At kernel 1 the axes of the kernel may be left out.
        reads: axes of a weight that makes one output: D_in, or D_in x k x k.
        width: D.

    Returns:
        A, r x `reads`, and B, D x r.
    """
    plain = reads[:1] if all(side == 1 for side in reads[1:]) else reads
    if low.down.shape[1:] not in (reads, plain) or low.up.shape[:2] != (width, low.rank) or low.up[0, 0].numel() != 1:
        return None
    return low.down.reshape(low.rank, *reads), low.up.flatten(1)


def as_stored(a: Tensor, b: Tensor, alpha: float) -> LowRank:
    """The way back: B has as many axes as A."""
    return LowRank(a, b.reshape(*b.shape, *(1 for _ in a.shape[2:])), alpha)
