"""Capture against eager on drawn members of every family: the largest difference is exactly 0."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import capture_checks as checks
from capture_families import FAMILIES, Case
from effort import examples
from fxtune.tracing import capture


# A failing model is shown as drawn: shrinking would capture hundreds of others.
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=examples(6, 50), phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_capture_equals_eager(family: str, data: st.DataObject) -> None:
    torch.manual_seed(0)
    case: Case = data.draw(FAMILIES[family])
    captured = capture(case.model, case.example)
    checks.assert_state_kept(captured, case.model)
    for args, kwargs in case.others:
        checks.assert_equal_to_eager(captured, case.model, args, kwargs)
