"""Which values are overwritten after they are computed: reading those later needs a copy."""

from __future__ import annotations

from fxtune.view import Value, View
from fxtune.vocabulary import CAST, DROPOUT, LAYOUT, PART


class Overwritten:
    """Values whose memory an in-place operation writes after them.

    Operators that may hand their operand's memory on (layout, parts, casts that change nothing, dropout in eval mode)
    are taken to do so: the worst that follows is a copy too many.
    """

    def __init__(self, view: View) -> None:
        self._owner: dict[int, int] = {}
        self._last_write: dict[int, int] = {}
        for value in view.values:
            owner = self._owner[value.id] = self._memory_of(value)
            if value.inplace:
                self._last_write[owner] = value.id

    def __contains__(self, value: int) -> bool:
        return self._last_write.get(self._owner[value], -1) > value

    def _memory_of(self, value: Value) -> int:
        inputs = value.inputs()
        if inputs and (value.inplace or _hands_on(value)):
            return self._owner[inputs[0].id]
        return value.id


def _hands_on(value: Value) -> bool:
    if value.op in LAYOUT or value.op in CAST or value.op in DROPOUT or value.op in PART or value.op == "getitem":
        return value.op != "clone"
    schema = getattr(value.target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)
