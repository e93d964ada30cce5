"""Settings that every test shares."""

import os

# Before any import of a library that reads them: no test fetches anything.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import torch
from hypothesis import HealthCheck, settings

from effort import DEEP, examples

# Two xdist workers with a thread pool each would fight for two cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# `make test` draws the same examples on every run; `make test-deep` draws new ones, and prints how to repeat a failure.
# Captures take seconds the first time (imports, dispatch tables), so there is no deadline and no "too slow".
settings.register_profile(
    "fxtune",
    max_examples=examples(50, 500),
    deadline=None,
    derandomize=not DEEP,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fxtune")
