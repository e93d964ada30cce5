"""Property tests for rules and tuners of your own; needs ``fxtune[testing]``.

========================================  =============================================================================
``geometries()``                          attention: masks, heads, projections, norms, positions; `Geometry`, `Case`
``ffn_shapes()``                          feed-forward networks, plain and gated; `FFNShape`
``small_models()``                        small random models of every family, from the real libraries; `SmallModel`
``rule_files()``                          valid rule files over the shipped tuners and sites
``assert_equivalent(model, rules)``       original and unbound form compute the same, as `fxtune.verify` says
``assert_identity_at_init(model, rules)`` untrained, the tuned model is the model, bit for bit
``assert_only_tuners_train(model, ...)``  training moves what the rules train, and nothing else
``assert_strips_clean(model, rules)``     afterwards ``strip()`` gives the model as it was
``saved_bytes(loss, alive)``              memory as it is measured, by autograd's packing
``held_bytes``, ``peak_bytes``            likewise by the allocator, after a forward, in steps; `tensors` live anyway
``probe(model, rules)``                   what of this holds, by trying: applies, trains, merges, verifies; `Probe`
========================================  =============================================================================

What a strategy draws is small plain data with a method ``build()``; a failing example is printed by what it has beyond
the simplest, and can be pasted back.
"""

from fxtune.testing.assertions import assert_identity_at_init, assert_only_tuners_train, assert_strips_clean
from fxtune.testing.equivalent import assert_equivalent
from fxtune.testing.ffns import FFNShape, ffn_shapes
from fxtune.testing.geometries import FEATURES, Case, Geometry, geometries
from fxtune.testing.measuring import held_bytes, peak_bytes, saved_bytes, tensors
from fxtune.testing.models import SmallModel, small_models
from fxtune.testing.probing import Probe, probe, probe_catalogue
from fxtune.testing.rules import rule_files

__all__ = [
    "FEATURES",
    "Case",
    "FFNShape",
    "Geometry",
    "Probe",
    "SmallModel",
    "assert_equivalent",
    "assert_identity_at_init",
    "assert_only_tuners_train",
    "assert_strips_clean",
    "ffn_shapes",
    "geometries",
    "held_bytes",
    "peak_bytes",
    "probe",
    "probe_catalogue",
    "rule_files",
    "saved_bytes",
    "small_models",
    "tensors",
]
