"""Capture against eager on drawn members of every family: the largest difference is exactly 0."""

from __future__ import annotations

import os

import capture_checks as checks
import pytest
import torch
from capture_families import FAMILIES, Case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fxtune.tracing import capture

EXAMPLES = 50 if os.environ.get("FXTUNE_DEEP") else 6


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(data=st.data())
def test_capture_equals_eager(family: str, data: st.DataObject) -> None:
    torch.manual_seed(0)
    case: Case = data.draw(FAMILIES[family])
    captured = capture(case.model, case.example)
    checks.assert_state_kept(captured, case.model)
    for args, kwargs in case.others:
        checks.assert_equal_to_eager(captured, case.model, args, kwargs)
