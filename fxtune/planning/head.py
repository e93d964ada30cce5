"""Where a model's head is, when nobody says."""

from __future__ import annotations

from fxtune.view import View


def last_linear(view: View) -> str | None:
    """Module path of the last linear map with a weight of its own in the order of computation, or None."""
    for node in reversed(view.by_op.get("linear", [])):
        weight = view.values[view.uses(node)[1].source]
        if weight.op == "param":
            return str(weight.target).rpartition(".")[0]
    return None
