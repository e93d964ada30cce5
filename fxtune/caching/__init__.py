"""Features of a frozen trunk on disk: computed once, read in every epoch."""

from fxtune.caching.batches import SplitBatch
from fxtune.caching.dataset import FeatureCache
from fxtune.caching.making import cache_features

__all__ = ["FeatureCache", "SplitBatch", "cache_features"]
