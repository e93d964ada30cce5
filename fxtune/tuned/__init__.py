"""The result of `apply`: a tuned model over its original's weights, and the steps that make one.

In order: `structural_twin` of the model, `replace_head` on the twin if there is a new head, `observed_capture` of the
twin, then (in other rooms) matching, planning and rewriting, then `TunedModel` with a `Report`.
"""

from fxtune.tuned.blocks import blocks_of
from fxtune.tuned.head import replace_head
from fxtune.tuned.loader import loads
from fxtune.tuned.model import TunedModel
from fxtune.tuned.narrowing import computing_with, first_units
from fxtune.tuned.observing import observed_capture
from fxtune.tuned.ownership import tensors
from fxtune.tuned.recapture import one_capture
from fxtune.tuned.recipe import Recipe
from fxtune.tuned.report import Report, RuleOutcome
from fxtune.tuned.stored import is_tuners, origin_of, own_tensors, put
from fxtune.tuned.twin import structural_twin

__all__ = [
    "Recipe",
    "Report",
    "RuleOutcome",
    "TunedModel",
    "blocks_of",
    "computing_with",
    "first_units",
    "is_tuners",
    "loads",
    "observed_capture",
    "one_capture",
    "origin_of",
    "own_tensors",
    "put",
    "replace_head",
    "structural_twin",
    "tensors",
]
