"""What of a patch can go into the model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fxtune.matching import Weights


@dataclass(frozen=True)
class Fold:
    """A tuner that can go into weights.

    Attributes:
        path: module path of the tuner.
        weights: of the operation, by their names in the model.
        bias: name of the operation's bias, or that under which its module would hold one.
        behind: whether the tuner stands behind the operation, and acts on what others have made of the weights.
        along: paths of tuners at the same output that read it. It can go into the weights if they do.
    """

    path: str
    weights: Weights
    bias: str
    behind: bool
    along: tuple[str, ...]


@dataclass(frozen=True)
class Folding:
    """What becomes of a patch's tuners when they are to go into the weights.

    Attributes:
        folds: those that can, in the order in which they act.
        refused: module path of each other tuner -> what stops it.
    """

    folds: tuple[Fold, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def without(self, refused: Mapping[str, str]) -> Folding:
        """The same without some tuners, and without those that can't go without them."""
        stopped = {**self.refused, **refused}
        while lost := {
            fold.path: f"`{other}` reads what the operation gives, and stays beside it"
            for fold in self.folds
            for other in fold.along
            if other in stopped and fold.path not in stopped
        }:
            stopped |= lost
        return Folding(tuple(fold for fold in self.folds if fold.path not in stopped), stopped)
