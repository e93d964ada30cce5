"""The rewriting room: from a patch to a changed graph."""

from fxtune.rewriting.rewrite import rewrite

__all__ = ["rewrite"]
