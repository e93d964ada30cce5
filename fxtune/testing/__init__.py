"""Property tests for rules and tuners of your own."""

from fxtune.testing.equivalent import assert_equivalent

__all__ = ["assert_equivalent"]
