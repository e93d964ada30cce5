"""A tuned model on disk: its own weights, how it was made, and what backbone it belongs to."""

from fxtune.saving.backbone import Backbone, changed_weights, check_structure, computing_of, weights_of
from fxtune.saving.file import FILE, Checkpoint, read, write
from fxtune.saving.inputs import described, drawn
from fxtune.saving.origin import Made, Origin, rule_files

__all__ = [
    "FILE",
    "Backbone",
    "Checkpoint",
    "Made",
    "Origin",
    "changed_weights",
    "check_structure",
    "computing_of",
    "described",
    "drawn",
    "read",
    "rule_files",
    "weights_of",
    "write",
]
