"""From a captured model's canonical view to its structure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from fxtune.digests import digest_of
from fxtune.structure.attention import Core, core_at
from fxtune.structure.attributes import attributes_of, given, scale_told
from fxtune.structure.constants import constants, says_nothing
from fxtune.structure.layout import shape_of, tensors_of, way_to, written
from fxtune.structure.reads import Channels, InForm, Matrix, Part, Read, Tokens, Turned, described
from fxtune.structure.structure import STATE, Node, Operand, Structure
from fxtune.view import Value, View, example_size
from fxtune.vocabulary import COMMUTATIVE


@dataclass(frozen=True)
class Structured:
    """A structure, and where the view's values are in it.

    Attributes:
        structure: the structure.
        found: view id -> the nodes that it became: several for a linear map of which parts are read.
    """

    structure: Structure
    view: View
    found: dict[int, tuple[int, ...]]

    def at(self, value: int) -> tuple[int, ...]:
        """The nodes of the operation that gives a value; none for what the model does not return anything of."""
        return self.found.get(way_to(self.view, value).source, ())


def structured(root: fx.GraphModule, view: View) -> Structured:
    """The structure of a captured model.

    Args:
        root: the capture, for the numbers of what is not in the state_dict.
        view: its canonical view.
    """
    return _Former(root, view).form()


class _Former:
    def __init__(self, root: fx.GraphModule, view: View) -> None:
        self.root, self.view = root, view
        self.constants = constants(view.values)
        self.saved = _first_names(root)
        self.first: dict[str, int] = {}
        for value in view.values:
            if value.op in ("param", "buffer"):
                self.first.setdefault(self._name(value), value.id)
        self.reads: dict[tuple[int, Part], list[Read]] = {}
        self.known: dict[tuple[Any, ...], tuple[Part, str]] = {}

    def form(self) -> Structured:
        """Readers come before what they read, for what is read of a linear map decides what it becomes."""
        outputs = [self._read(value) for value in self.view.returned]
        wanted: dict[int, dict[Part, None]] = {}
        _want(wanted, outputs)
        for id in range(len(self.view.values) - 1, -1, -1):
            for part in wanted.get(id, ()):
                reads = self.reads[id, part] = list(self._operands(id, part))
                _want(wanted, reads)
        keys = sorted(self.reads, key=lambda key: (key[0], key[1].take.offset if key[1] else -1, str(key[1])))
        index = {key: i for i, key in enumerate(keys)}
        nodes = tuple(self._node(id, part, index) for id, part in keys)
        found: dict[int, tuple[int, ...]] = {}
        for id, part in keys:
            found[id] = (*found.get(id, ()), index[id, part])
        return Structured(Structure(nodes=nodes, outputs=_operands(outputs, index)), self.view, found)

    # ---- what is read ------------------------------------------------------------------------------------------------

    def _operands(self, id: int, part: Part) -> Iterator[Read]:
        value = self.view.values[id]
        if id in self.constants or id not in self.view.graph:
            return
        if self._is_linear(id):
            yield from self._operands_of_linear(value, part)
            return
        core = self._core(id)
        if core is not None:
            yield from (self._read(core.q), self._read(core.k, Turned()), self._read(core.v))
            yield from () if core.mask is None else (self._read(core.mask),)
            return
        yield from (self._read(read.id) for read in tensors_of(value) if not self._is_idle(value, read))

    def _core(self, id: int) -> Core | None:
        return core_at(self.view, id, self.constants)

    def _operands_of_linear(self, value: Value, part: Part) -> Iterator[Read]:
        """Tokens x channels, a weight of out x in, and a bias; of the two the rows that are asked for."""
        x, weight, *bias = self._roles(value)
        rows = part.take if part else None
        yield self._read(x.id, Tokens(1 if value.op.startswith("conv") else -1))
        yield self._read(weight.id, Matrix(value.op in ("addmm", "mm", "matmul"), rows))
        for one in bias:
            yield self._read(one.id, Channels(rows))

    def _read(self, id: int, form: InForm | None = None) -> Read:
        """What is read of which source, and how: as it is, or in the form that a linear map has it."""
        way = way_to(self.view, id)
        if id in self.constants or way.source in self.constants:
            return (id, None, "") if id in self.constants else (way.source, None, written(way))
        source, shape = self.view.values[way.source], shape_of(self.view, way)
        id = self.first[self._name(source)] if source.op in ("param", "buffer") else way.source
        kind = STATE if source.op in ("param", "buffer") else "linear" if self._is_linear(way.source) else ""
        channels = 1 if kind == "linear" and source.op.startswith("conv") else None
        key = (kind, shape, channels, written(way), form)
        if key not in self.known:  # the layers of a network have their layout in common
            self.known[key] = described(kind, shape, channels, way, form)
        part, how = self.known[key]
        return id, part, f"item {way.item} {how}" if way.item else how

    def _name(self, value: Value) -> str:
        """Of a tensor of the model: tied ones have one name, and are one node."""
        return self.saved.get(str(value.target), str(value.target))

    # ---- nodes -------------------------------------------------------------------------------------------------------

    def _node(self, id: int, part: Part, index: dict[tuple[int, Part], int]) -> Node:
        value = self.view.values[id]
        take = part.take if part else None
        if id in self.constants:
            return _constant(self.constants[id], value.module)
        if value.op in ("param", "buffer"):
            return self._state(value, part)
        if value.op == "input" or id not in self.view.graph:
            kind = "input" if value.op == "input" else f"noise {value.op}"
            return Node(
                op=kind, name=str(value.target) * (value.op == "input"), shape=_shape(value), attributes=_kind(value)
            )
        op = self.view.op(id)
        operands = _operands(self.reads[id, part], index)
        if value.op == "opaque":
            return Node(op=op, name=value.module, attributes=value.module, operands=operands)
        if self._is_linear(id):
            width = self._width(value) if take is None else take.size
            shape: tuple[int, ...] = (math.prod(_shape(value)) // self._width(value), width)
            return Node(op=op, name=value.module, shape=shape, operands=operands, take=take)
        core = self._core(id)
        if core is not None:
            head_dim = example_size(self.view.values[core.q].shape[-1])
            attributes = scale_told(core.scale, head_dim)
            return Node(op="sdpa", name=value.module, shape=_shape(value), attributes=attributes, operands=operands)
        attributes, eps = attributes_of(value, op, self.view.attrs(id))
        kind = _kind(value)
        return Node(
            op=value.op if op == "linear" else op,
            name=value.module,
            shape=_shape(value),
            attributes=", ".join(filter(None, [attributes, kind])),
            eps=eps,
            operands=operands,
            ordered=op not in COMMUTATIVE or "alpha" in attributes,
        )

    def _state(self, value: Value, part: Part) -> Node:
        name, kind = self._name(value), _kind(value)
        tensor = None if name in self.saved else _held(self.root, name)
        if tensor is not None:
            numbers = tensor if part is None else tensor.flatten()[part.take.places()].view(part.shape)
            return _constant(numbers, name)
        shape = part.shape if part else _shape(value)
        return Node(op=STATE, name=name, shape=shape, attributes=kind, take=part.take if part else None)

    # ---- linear maps -------------------------------------------------------------------------------------------------

    def _is_linear(self, id: int) -> bool:
        """Whether it is a linear map whose weight is a matrix, and its bias a number a channel."""
        if id not in self.view.graph or self.view.op(id) != "linear":
            return False
        value = self.view.values[id]
        roles = self._roles(value)
        if len(roles) < 2 or not isinstance(value.val, Tensor) or len(value.shape) < 2:
            return False
        matrix = len(roles[1].shape) == 2 or value.op.startswith("conv")
        plain = all(given(value).get(factor, 1) == 1 for factor in ("alpha", "beta"))
        return matrix and plain and all(_shape(bias) == (self._width(value),) for bias in roles[2:])

    @staticmethod
    def _roles(value: Value) -> list[Value]:
        """Input, weight and bias."""
        names = {"addmm": ("mat1", "mat2", "self"), "mm": ("self", "mat2"), "matmul": ("self", "other")}
        arguments = given(value)
        roles = [arguments.get(name) for name in names.get(value.op, ("input", "weight", "bias"))]
        return [role for role in roles if isinstance(role, Value)]

    def _width(self, value: Value) -> int:
        return example_size(value.shape[1 if value.op.startswith("conv") else -1])

    def _is_idle(self, value: Value, read: Value) -> bool:
        """Whether an operand is noise, or a mask that masks nothing."""
        if value.op == "scaled_dot_product_attention" and given(value).get("attn_mask") is read:
            way = way_to(self.view, read.id)
            mask = self.constants.get(read.id, self.constants.get(way.source))
            return mask is not None and says_nothing(mask)
        return False


def _want(wanted: dict[int, dict[Part, None]], reads: list[Read]) -> None:
    for source, part, _ in reads:
        wanted.setdefault(source, {})[part] = None


def _operands(reads: list[Read], index: dict[tuple[int, Part], int]) -> tuple[Operand, ...]:
    return tuple(Operand(node=index[source, part], how=how) for source, part, how in reads)


def _first_names(root: fx.GraphModule) -> dict[str, str]:
    """Name in the state_dict -> the first name there of the same tensor."""
    first: dict[int, str] = {}
    state = root.state_dict(keep_vars=True)
    return {name: first.setdefault(id(tensor), name) for name, tensor in state.items()}


def _constant(tensor: Tensor, name: str) -> Node:
    return Node(op="constant", name=name, shape=tuple(tensor.shape), attributes=digest_of(tensor))


def _held(root: fx.GraphModule, name: str) -> Tensor | None:
    """A tensor of the model that its state_dict lacks; None where it has no numbers, or no graph holds it."""
    path, _, last = name.rpartition(".")
    try:
        tensor = getattr(root.get_submodule(path), last)
    except AttributeError:
        return None
    return tensor if isinstance(tensor, Tensor) and not tensor.is_meta else None


def _shape(value: Value) -> tuple[int, ...]:
    if isinstance(value.val, tuple | list):
        return next((tuple(map(example_size, one.shape)) for one in value.val if isinstance(one, Tensor)), ())
    return tuple(map(example_size, value.shape))


def _kind(value: Value) -> str:
    """What kind of numbers: floating ones count alike, whatever their precision."""
    val = value.val[0] if isinstance(value.val, tuple | list) and value.val else value.val
    if not isinstance(val, Tensor) or val.dtype.is_floating_point:
        return ""
    return str(val.dtype).removeprefix("torch.")
