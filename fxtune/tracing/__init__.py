from fxtune.tracing.capture import capture
from fxtune.tracing.region import Region

__all__ = ["Region", "capture"]
