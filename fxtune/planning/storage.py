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
        self._values = view.values
        self._parent: dict[int, int] = {}
        self._owner: dict[int, int] = {}
        self._writes: dict[int, list[int]] = {}
        for value in view.values:
            inputs = value.inputs()
            if inputs and (value.inplace or _hands_on(value)):
                self._parent[value.id] = inputs[0].id
            owner = self._owner[value.id] = self._owner.get(self._parent.get(value.id, -1), value.id)
            if value.inplace:
                self._writes.setdefault(owner, []).append(value.id)

    def __contains__(self, value: int) -> bool:
        return bool(self._after(value))

    def reader_elsewhere(self, value: int) -> Value | None:
        """The first operation that sees a later write to this value's memory, and not through this value.

        With another value in this one's place (the sum with a tuner) that operation would no longer see the write.
        """
        writes = self._after(value)
        if not writes or self._owner[value] == value:
            return None
        for reader in self._values[writes[0] + 1 :]:
            shared = (read.id for read in reader.inputs() if self._owner[read.id] == self._owner[value])
            if not all(self._through(read, value) for read in shared):
                return reader
        return None

    def _after(self, value: int) -> list[int]:
        return [write for write in self._writes.get(self._owner[value], ()) if write > value]

    def _through(self, value: int, other: int) -> bool:
        """Whether `value` has its memory by way of `other`."""
        while value != other and value in self._parent:
            value = self._parent[value]
        return value == other


def _hands_on(value: Value) -> bool:
    if value.op in LAYOUT or value.op in CAST or value.op in DROPOUT or value.op in PART or value.op == "getitem":
        return value.op != "clone"
    schema = getattr(value.target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)
