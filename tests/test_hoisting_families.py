"""The pass on drawn members of every family: what they return stays the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from capture_families import FAMILIES, Case
from effort import examples
from fxtune.hoisting import hoist
from fxtune.tracing import capture


# A failing model is shown as drawn: shrinking would capture hundreds of others.
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=examples(2, 30), phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_a_model_returns_stays_the_same(family: str, data: st.DataObject) -> None:
    torch.manual_seed(0)
    case: Case = data.draw(FAMILIES[family])
    plain = capture(case.model, case.example).eval()
    fast = capture(case.model, case.example).eval()
    hoist(fast, through_detach=True)
    for args, kwargs in case.others:
        for found, expected in zip(returned(fast, args, kwargs), returned(plain, args, kwargs), strict=True):
            assert found.shape == expected.shape
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def returned(model: Any, args: Any, kwargs: Any) -> list[Tensor]:
    args, kwargs = copy.deepcopy((args, kwargs))  # a cache of keys grows with each call
    torch.manual_seed(0)
    with torch.no_grad():
        result = model(*args, **kwargs)
    leaves = pytree.tree_leaves(tuple(result.values()) if isinstance(result, dict) else result)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
