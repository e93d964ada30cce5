"""The planning room: from rules and sites to a patch."""

from fxtune.planning.attach import Form
from fxtune.planning.bypass import BypassPlan, Level, Stem, Transition, Tuner
from fxtune.planning.edits import After, Beside, Bias, Core, Edit, InWeights, Note, OnGrid, Prompted, Value
from fxtune.planning.folds import Fold, Folding
from fxtune.planning.head import last_linear
from fxtune.planning.patch import Insertion, Patch, Place, RulePlan
from fxtune.planning.plan import plan

__all__ = [
    "After",
    "Beside",
    "Bias",
    "BypassPlan",
    "Core",
    "Edit",
    "Fold",
    "Folding",
    "Form",
    "InWeights",
    "Insertion",
    "Level",
    "Note",
    "OnGrid",
    "Patch",
    "Place",
    "Prompted",
    "RulePlan",
    "Stem",
    "Transition",
    "Tuner",
    "Value",
    "last_linear",
    "plan",
]
