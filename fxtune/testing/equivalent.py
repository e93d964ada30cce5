"""What both forms of a tuner must keep to, as one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn

from fxtune.api import RulesLike
from fxtune.verifying import verify


class Buildable(Protocol):
    """What `small_models` and `ffn_shapes` draw."""

    def build(self) -> tuple[nn.Module, Any]:
        """A model, and inputs for it."""
        ...


def assert_equivalent(
    model: nn.Module | Buildable,
    rules: RulesLike | Sequence[RulesLike],
    inputs: Any = None,
    *,
    examples: int = 5,
    seed: int = 0,
    dtypes: Sequence[str] = ("float64", "float32", "bfloat16"),
    **settings: Any,
) -> None:
    """The original and the unbound form of the rules compute the same: outputs and gradients, as `fxtune.verify` says.

    Args:
        model: any model, which comes out as it went in; or what `small_models` or `ffn_shapes` draws.
        rules: as for `fxtune.apply`.
        inputs: a tuple of arguments, a dict of keywords, or a pair of both; by default those that were drawn with the
            model, or of the model's card. Values, batch and length are drawn anew.
        examples: how many weights and inputs to draw.
        seed: from which they are drawn.
        dtypes: in which to compare.
        settings: more of what `fxtune.apply` takes (``head=``, settings of tuners).

    Raises:
        AssertionError: the certificate in words, with the smallest failing example.
        FxtuneError: the rules could not be applied, or a tuner has no original form.
    """
    if not isinstance(model, nn.Module):
        model, drawn = model.build()
        inputs = drawn if inputs is None else inputs
    certificate = verify(model, rules, example_inputs=inputs, examples=examples, seed=seed, dtypes=dtypes, **settings)
    if not certificate.passed:
        raise AssertionError(str(certificate))
