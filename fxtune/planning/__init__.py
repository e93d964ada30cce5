"""The planning room: from rules and sites to a patch."""

from fxtune.planning.head import last_linear
from fxtune.planning.patch import Insertion, Patch, RulePlan, Source
from fxtune.planning.plan import plan

__all__ = ["Insertion", "Patch", "RulePlan", "Source", "last_linear", "plan"]
