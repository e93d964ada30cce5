"""The hoisting room: what is read of a model's last values decides what is computed of the others."""

from fxtune.hoisting.hoist import hoist
from fxtune.hoisting.report import Hoisted

__all__ = ["Hoisted", "hoist"]
