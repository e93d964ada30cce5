"""The pattern room: from pattern files to named, checked patterns."""

from fxtune.patterns.library import Definitions, Library, load_patterns, read_definitions
from fxtune.patterns.spec import OpSets, PatternSpec

__all__ = ["Definitions", "Library", "OpSets", "PatternSpec", "load_patterns", "read_definitions"]
