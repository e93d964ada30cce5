"""Parameter-efficient fine-tuning by rewriting a model's dataflow graph.

    >>> tuned = fxtune.apply(model, rules="tri_res")
    >>> print(tuned.report())

Names are imported when they are first used: ``import fxtune`` alone does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fxtune.accounting import MemoryReport, memory
    from fxtune.api import MethodCounts, apply, inspect, load, methods
    from fxtune.errors import (
        CacheError,
        CaptureError,
        CheckpointError,
        FxtuneError,
        InputError,
        MatchError,
        PatternError,
        PlanError,
        RuleError,
        SourceError,
        UnsupportedModelError,
        UntunedCallError,
    )
    from fxtune.searching import Found, Supernet
    from fxtune.searching.search import search
    from fxtune.tasks import MultiTask, multitask
    from fxtune.tracing.capture import capture
    from fxtune.tuned import TunedModel
    from fxtune.tuners import Placement, tuner
    from fxtune.verifying import Certificate
    from fxtune.verifying.verify import verify

__version__ = "0.1.0"

__all__ = [
    "CacheError",
    "CaptureError",
    "Certificate",
    "CheckpointError",
    "Found",
    "FxtuneError",
    "InputError",
    "MatchError",
    "MemoryReport",
    "MethodCounts",
    "MultiTask",
    "PatternError",
    "Placement",
    "PlanError",
    "RuleError",
    "SourceError",
    "Supernet",
    "TunedModel",
    "UnsupportedModelError",
    "UntunedCallError",
    "apply",
    "capture",
    "inspect",
    "load",
    "memory",
    "methods",
    "multitask",
    "search",
    "tuner",
    "verify",
]

_HOME = {
    "Certificate": "fxtune.verifying",
    "Found": "fxtune.searching",
    "MemoryReport": "fxtune.accounting",
    "MethodCounts": "fxtune.api",
    "MultiTask": "fxtune.tasks",
    "Placement": "fxtune.tuners",
    "Supernet": "fxtune.searching",
    "TunedModel": "fxtune.api",
    "apply": "fxtune.api",
    "capture": "fxtune.tracing",
    "inspect": "fxtune.api",
    "load": "fxtune.api",
    "memory": "fxtune.accounting",
    "methods": "fxtune.api",
    "multitask": "fxtune.tasks",
    "search": "fxtune.searching",
    "tuner": "fxtune.tuners",
    "verify": "fxtune.verifying",
}
"""Where each public name lives, errors aside."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME.get(name, "fxtune.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
