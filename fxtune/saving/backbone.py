"""What a backbone is: what it computes, and with which weights."""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping

from pydantic import BaseModel, ConfigDict
from torch import nn

from fxtune.digests import digest_of
from fxtune.errors import CheckpointError
from fxtune.splitting import flatten, lines_of
from fxtune.tracing import Region


class Backbone(BaseModel):
    """A model without its numbers, and a digest of each of these.

    Attributes:
        computing: what each node of its flat graph computes, of which others, with which modules.
        weights: parameter and buffer -> digest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    computing: tuple[str, ...]
    weights: dict[str, str]


def computing_of(root: Region) -> tuple[str, ...]:
    """What a captured model computes, node by node."""
    return tuple(lines_of(flatten(root), root))


def weights_of(model: nn.Module) -> dict[str, str]:
    """A digest of every weight and buffer of a model's state_dict."""
    return {name: digest_of(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}


def check_structure(there: tuple[str, ...], here: tuple[str, ...], where: str) -> None:
    """Refuses a checkpoint that was tuned on a model of another structure.

    Args:
        there: what the checkpoint's backbone computes.
        here: what the model does.
        where: the checkpoint's place.

    Raises:
        CheckpointError: the first node that differs.
    """
    pairs = itertools.zip_longest(there, here, fillvalue="nothing more")
    different = next(((old, new) for old, new in pairs if old != new), None)
    if different is not None:
        old, new = (_short(line) for line in different)
        raise CheckpointError(
            "these tuners belong to a model of another structure",
            found=f"the first difference: they were tuned on `{old}`; this model has `{new}`",
            where=where,
            fix="load them on the architecture that they were tuned on, with the same example_inputs",
        )


def changed_weights(there: Mapping[str, str], here: Mapping[str, str], replaced: Container[str]) -> list[str]:
    """The weights whose numbers are not those of the checkpoint's backbone, those aside that it replaces."""
    return [name for name, digest in here.items() if name not in replaced and there.get(name) != digest]


def _short(line: str) -> str:
    plain = " ".join(line.split())
    return plain if len(plain) <= 200 else f"{plain[:200]}..."
