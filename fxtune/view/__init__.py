"""The view room: from a captured graph to what it computes."""

from fxtune.view.canonical import Use, View, view
from fxtune.view.values import Tap, Value, example_size, join, read_values, written

__all__ = ["Tap", "Use", "Value", "View", "example_size", "join", "read_values", "view", "written"]
