"""Capture: a live model becomes nested fx graphs that compute the same."""

from fxtune.tracing.capture import call_inputs, capture
from fxtune.tracing.contexts import ENTER, LEAVE
from fxtune.tracing.modes import ByMode
from fxtune.tracing.region import Region
from fxtune.tracing.signature import CallSignature

__all__ = ["ENTER", "LEAVE", "ByMode", "CallSignature", "Region", "call_inputs", "capture"]
