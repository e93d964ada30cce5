"""A tuned model on disk: its own weights, how it was made, and what backbone it belongs to."""

from fxtune.saving.backbone import Backbone, changed_weights, check_structure, computing_of, weights_of
from fxtune.saving.file import FILE, Checkpoint, read, write
from fxtune.saving.inputs import described, drawn
from fxtune.saving.origin import Made, Origin, rule_files
from fxtune.saving.tensors import Stored, check_finite, read_tensors, unreadable, write_tensors

__all__ = [
    "FILE",
    "Backbone",
    "Checkpoint",
    "Made",
    "Origin",
    "Stored",
    "changed_weights",
    "check_finite",
    "check_structure",
    "computing_of",
    "described",
    "drawn",
    "read",
    "read_tensors",
    "rule_files",
    "unreadable",
    "weights_of",
    "write",
    "write_tensors",
]
