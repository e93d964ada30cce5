"""The pattern room: from pattern files to named, checked patterns."""

from fxtune.patterns.library import Definitions, Library, load_patterns, read_definitions
from fxtune.patterns.spec import OpSets, PatternSpec, Words
from fxtune.patterns.syntax import Anything, Attribute, Body, Call, Condition, Expr, Line, Name, Pattern, Term

__all__ = [
    "Anything",
    "Attribute",
    "Body",
    "Call",
    "Condition",
    "Definitions",
    "Expr",
    "Library",
    "Line",
    "Name",
    "OpSets",
    "Pattern",
    "PatternSpec",
    "Term",
    "Words",
    "load_patterns",
    "read_definitions",
]
