"""What people call: `apply`, `inspect`, `load` and `methods`."""

from fxtune.api.applying import apply
from fxtune.api.counting import MethodCounts, methods
from fxtune.api.drafting import RulesLike
from fxtune.api.inspecting import inspect
from fxtune.api.loading import load
from fxtune.tuned import TunedModel

__all__ = ["MethodCounts", "RulesLike", "TunedModel", "apply", "inspect", "load", "methods"]
