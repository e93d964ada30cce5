"""A tuned model on disk: its own weights, how it was made, and what backbone it belongs to."""

from fxtune.saving.backbone import (
    Backbone,
    changed_weights,
    computing_of,
    digests_by_node,
    other_structure,
    parts_of,
    weights_of,
)
from fxtune.saving.file import FILE, Checkpoint, read, write
from fxtune.saving.inputs import described, drawn
from fxtune.saving.moving import Elsewhere, Moved, moved_state, moved_tuners
from fxtune.saving.origin import Made, Origin, rule_files
from fxtune.saving.rewording import resized, reworded
from fxtune.saving.standing import Standing, standings_of
from fxtune.saving.tensors import Stored, check_finite, read_tensors, unreadable, write_tensors

__all__ = [
    "FILE",
    "Backbone",
    "Checkpoint",
    "Elsewhere",
    "Made",
    "Moved",
    "Origin",
    "Standing",
    "Stored",
    "changed_weights",
    "check_finite",
    "computing_of",
    "described",
    "digests_by_node",
    "drawn",
    "moved_state",
    "moved_tuners",
    "other_structure",
    "parts_of",
    "read",
    "read_tensors",
    "resized",
    "reworded",
    "rule_files",
    "standings_of",
    "unreadable",
    "weights_of",
    "write",
    "write_tensors",
]
