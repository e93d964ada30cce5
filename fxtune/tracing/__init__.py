"""Capture: a live model becomes nested fx graphs that compute the same."""

from fxtune.tracing.capture import call_inputs, capture
from fxtune.tracing.contexts import ENTER, LEAVE, new_graph
from fxtune.tracing.modes import ByMode
from fxtune.tracing.region import Constants, Region
from fxtune.tracing.signature import CallSignature

__all__ = ["ENTER", "LEAVE", "ByMode", "CallSignature", "Constants", "Region", "call_inputs", "capture", "new_graph"]
