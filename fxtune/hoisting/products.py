"""Laws of products and attention: an axis of the result is an axis of one operand, or of all that are batched."""

from __future__ import annotations

from fxtune.hoisting.call import Call, Moved
from fxtune.hoisting.elementwise import broadcast
from fxtune.hoisting.part import Part, Range, written


def linear(call: Call, part: Part) -> Moved | None:
    """``(x Wᵀ + b)[rows, channels] = x[rows] W[channels]ᵀ + b[channels]``."""
    channels, last = Part.of({0: part.on(len(call.shape) - 1)}), len(call.shape) - 1
    if len(call.shape_of("weight")) != 2:
        return None
    return call.moved({"input": part.without(last), "weight": channels, "bias": channels})


def matmul(call: Call, part: Part) -> Moved | None:
    """``(A B)[rows, columns] = A[rows] B[:, columns]``; other axes are batched."""
    names = ("self", "mat2" if "mat2" in call.given else "other")
    if min(len(call.shape_of(name)) for name in names) < 2:
        return None
    left, right = (_factor(call, part, name) for name in names)
    return call.moved(
        {names[0]: _with(left, -2, part, call, names[0]), names[1]: _with(right, -1, part, call, names[1])}
    )


def addmm(call: Call, part: Part) -> Moved:
    """``C + A B``, where C is broadcast."""
    last = len(call.shape) - 1
    rows, columns = part.on(last - 1), part.on(last)
    batch = part.without(last, last - 1)
    names = ("mat1", "mat2") if "mat1" in call.given else ("batch1", "batch2")
    return call.moved(
        {
            "self": broadcast(part, call.shape, call.shape_of("self")),
            names[0]: Part.of({**dict(batch), last - 1: rows}),
            names[1]: Part.of({**dict(batch), last: columns}),
        }
    )


def attention(call: Call, part: Part) -> Moved | None:
    """``softmax(Q Kᵀ + mask) V``: rows are the queries', the last axis the values'; other axes are batched.

    Under a causal mask a row sees the keys up to its own number. The last of as many rows as keys sees them all.
    """
    last = len(call.shape) - 1
    rows, channels, batch = part.on(last - 1), part.on(last), part.without(last, last - 1)
    if call.given.get("enable_gqa") and batch.on(last - 2):
        return None
    causal = call.given.get("is_causal", False)
    if causal and rows is not None:
        if not _is_last(rows, call):
            return None
        causal = False
    q = Part.of({**dict(broadcast(batch, call.shape, call.shape_of("query"))), _last(call, "query") - 1: rows})
    k = broadcast(batch, call.shape, call.shape_of("key"))
    v = Part.of({**dict(broadcast(batch, call.shape, call.shape_of("value"))), _last(call, "value"): channels})
    mask = broadcast(part.without(last), call.shape, call.shape_of("attn_mask"))
    literals = {} if causal == call.given.get("is_causal", False) else {"is_causal": False}
    return call.moved({"query": q, "key": k, "value": v, "attn_mask": mask}, literals)


def convolution(call: Call, part: Part) -> Moved | None:
    """An axis along which the kernel has one place is an axis of the input; output channels are the weight's."""
    x, weight = call.shape_of("input"), call.shape_of("weight")
    space = len(weight) - 2
    if len(x) != len(weight) or any(not _one_place(call, axis - 2, space) for axis, _ in part.without(0, 1)):
        return None
    channels = part.on(1)
    if channels and call.given.get("groups", 1) != 1:
        return None
    filters = Part.of({0: channels})
    return call.moved({"input": part.without(1), "weight": filters, "bias": filters})


def embedding(call: Call, part: Part) -> Moved:
    """Rows of a table: the last axis is the table's."""
    last = len(call.shape) - 1
    return call.moved({"weight": Part.of({1: part.on(last)}), "indices": part.without(last)})


def _factor(call: Call, part: Part, name: str) -> Part:
    """The batched axes of a factor, which are broadcast."""
    last = len(call.shape) - 1
    return broadcast(part.without(last, last - 1), call.shape, call.shape_of(name))


def _with(batch: Part, axis: int, part: Part, call: Call, name: str) -> Part:
    own = len(call.shape_of(name))
    return Part.of({**dict(batch), own + axis: part.on(len(call.shape) + axis)})


def _last(call: Call, name: str) -> int:
    return len(call.shape_of(name)) - 1


def _is_last(rows: Range, call: Call) -> bool:
    queries, keys = call.shape_of("query")[-2], call.shape_of("key")[-2]
    if rows.length != 1 or written(queries) != written(keys):
        return False
    return rows.start == -1 or (isinstance(queries, int) and rows.start == queries - 1)


def _one_place(call: Call, number: int, space: int) -> bool:
    """Whether the kernel reads one place at a time, without steps or padding, along a spatial axis."""
    stride, padding = (_along(call.given.get(name), number, space) for name in ("stride", "padding"))
    return written(call.shape_of("weight")[2 + number]) == 1 and stride in (1, None) and padding in (0, None)


def _along(setting: object, number: int, space: int) -> object:
    """A setting of one spatial axis, where it may be one for all."""
    if isinstance(setting, list | tuple):
        return setting[number if len(setting) == space else 0] if setting else None
    return setting
