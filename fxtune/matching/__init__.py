"""The matching room: from the view and the patterns to sites."""

from fxtune.matching.site import Attention, NearMiss, Port, Site
from fxtune.matching.sites import Sites

__all__ = ["Attention", "NearMiss", "Port", "Site", "Sites"]
