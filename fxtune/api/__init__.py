"""What people call: `apply`, `inspect` and `load`."""

from fxtune.api.applying import apply
from fxtune.api.drafting import RulesLike
from fxtune.api.inspecting import inspect
from fxtune.api.loading import load

__all__ = ["RulesLike", "apply", "inspect", "load"]
