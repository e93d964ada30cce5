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
    from fxtune.data import Data, load_data
    from fxtune.errors import (
        CacheError,
        CaptureError,
        CheckpointError,
        DataError,
        FxtuneError,
        InputError,
        MatchError,
        PatternError,
        PlanError,
        RuleError,
        SourceError,
        TrainingError,
        UnsupportedModelError,
        UntunedCallError,
    )
    from fxtune.sampling.distance import fid
    from fxtune.sampling.sample import sample
    from fxtune.searching import Found, Supernet
    from fxtune.searching.search import search
    from fxtune.sweeping import Swept
    from fxtune.sweeping.sweep import sweep
    from fxtune.tasks import MultiTask, multitask
    from fxtune.tracing.capture import capture
    from fxtune.training import Run, evaluate
    from fxtune.training.tune import tune
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
    "Data",
    "DataError",
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
    "Run",
    "SourceError",
    "Supernet",
    "Swept",
    "TrainingError",
    "TunedModel",
    "UnsupportedModelError",
    "UntunedCallError",
    "apply",
    "capture",
    "evaluate",
    "fid",
    "inspect",
    "load",
    "load_data",
    "memory",
    "methods",
    "multitask",
    "sample",
    "search",
    "sweep",
    "tune",
    "tuner",
    "verify",
]

_HOME = {
    "Certificate": "fxtune.verifying",
    "Data": "fxtune.data",
    "Found": "fxtune.searching",
    "MemoryReport": "fxtune.accounting",
    "MethodCounts": "fxtune.api",
    "MultiTask": "fxtune.tasks",
    "Placement": "fxtune.tuners",
    "Run": "fxtune.training",
    "Supernet": "fxtune.searching",
    "Swept": "fxtune.sweeping",
    "TunedModel": "fxtune.api",
    "apply": "fxtune.api",
    "capture": "fxtune.tracing",
    "evaluate": "fxtune.training",
    "fid": "fxtune.sampling",
    "inspect": "fxtune.api",
    "load": "fxtune.api",
    "load_data": "fxtune.data",
    "memory": "fxtune.accounting",
    "methods": "fxtune.api",
    "multitask": "fxtune.tasks",
    "sample": "fxtune.sampling",
    "search": "fxtune.searching",
    "sweep": "fxtune.sweeping",
    "tune": "fxtune.training",
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
