"""Property tests of one's own rules and tuners, with hypothesis: ``import fxtune.testing``."""

from fxtune.testing.geometries import FEATURES, Case, Geometry, geometries

__all__ = ["FEATURES", "Case", "Geometry", "geometries"]
