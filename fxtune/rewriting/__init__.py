"""The rewriting room: from a patch to a changed graph."""

from fxtune.rewriting.bypass import build_bypass
from fxtune.rewriting.layout import to_tokens
from fxtune.rewriting.rewrite import rewrite

__all__ = ["build_bypass", "rewrite", "to_tokens"]
