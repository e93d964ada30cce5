"""Images drawn by a pipeline with a tuned model in it, and how near they are to others."""

from __future__ import annotations

from fxtune.sampling.distance import fid
from fxtune.sampling.sample import sample

__all__ = ["fid", "sample"]
