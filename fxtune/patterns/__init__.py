"""The pattern room: from pattern files to named, checked patterns."""

from fxtune.patterns.library import Library, PatternFile, PatternSpec, load_patterns

__all__ = ["Library", "PatternFile", "PatternSpec", "load_patterns"]
