"""How much a test does: few examples in `make test`, many in `make test-deep` (FXTUNE_DEEP=1)."""

import os

DEEP = os.environ.get("FXTUNE_DEEP") == "1"


def examples(few: int, many: int) -> int:
    """The number of hypothesis examples: `few` in `make test`, `many` in `make test-deep`."""
    return many if DEEP else few
