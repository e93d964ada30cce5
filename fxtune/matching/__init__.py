"""The matching room: from the view and the patterns to sites."""

from fxtune.matching.site import Attention, NearMiss, Operation, Port, Site, WeightLayout, Weights
from fxtune.matching.sites import Sites

__all__ = ["Attention", "NearMiss", "Operation", "Port", "Site", "Sites", "WeightLayout", "Weights"]
