"""Sweeps: the same training by several rules, seeds and settings, as one file says, with a table and plots."""

from __future__ import annotations

from fxtune.sweeping.spec import Sweep
from fxtune.sweeping.sweep import Swept, sweep
from fxtune.sweeping.table import Row

__all__ = ["Row", "Sweep", "Swept", "sweep"]
