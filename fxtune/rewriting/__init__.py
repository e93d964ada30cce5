"""The rewriting room: from a patch to a changed graph."""

from fxtune.rewriting.bypass import build_bypass
from fxtune.rewriting.layout import to_tokens
from fxtune.rewriting.rewrite import rewrite
from fxtune.rewriting.weights import as_stored, out_by_in

__all__ = ["as_stored", "build_bypass", "out_by_in", "rewrite", "to_tokens"]
