"""A tuned model with a detached bypass in two: the trunk, and the branch that trains beside it."""

from fxtune.splitting.split import Features, Split, has_bypass, split

__all__ = ["Features", "Split", "has_bypass", "split"]
