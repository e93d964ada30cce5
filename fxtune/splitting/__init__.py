"""A tuned model with a detached bypass in two: the trunk, and the branch that trains beside it."""

from fxtune.splitting.cut import TUNERS
from fxtune.splitting.flat import flatten
from fxtune.splitting.kinds import only_rearranges, takes_part
from fxtune.splitting.reading import lines_of, operation, structure_of, tensors_of
from fxtune.splitting.split import Features, Split, has_bypass, over, split

__all__ = [
    "TUNERS",
    "Features",
    "Split",
    "flatten",
    "has_bypass",
    "lines_of",
    "only_rearranges",
    "operation",
    "over",
    "split",
    "structure_of",
    "takes_part",
    "tensors_of",
]
