"""Many tasks on one backbone: one pass of the trunk, and a branch for each task."""

from fxtune.tasks.model import MultiTask, multitask

__all__ = ["MultiTask", "multitask"]
