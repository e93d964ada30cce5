"""The matching room: from the view and the patterns to sites."""

from fxtune.matching.edges import port
from fxtune.matching.site import Attention, Convolution, NearMiss, Operation, Port, Site, WeightLayout, Weights
from fxtune.matching.sites import Sites

__all__ = [
    "Attention",
    "Convolution",
    "NearMiss",
    "Operation",
    "Port",
    "Site",
    "Sites",
    "WeightLayout",
    "Weights",
    "port",
]
