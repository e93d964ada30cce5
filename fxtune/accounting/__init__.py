"""Accounting: the memory that training takes, known before any of it is taken.

A training step runs on fake tensors, which have shapes, devices and storages but no memory behind them, and a ledger
watches their storages come and go.
"""

from fxtune.accounting.account import memory
from fxtune.accounting.report import MemoryReport, Usage

__all__ = ["MemoryReport", "Usage", "memory"]
