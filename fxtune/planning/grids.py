"""Which tokens are the positions of a map, and which stand before them: read from the dataflow.

Every position of a map that a convolution gives is numbered, and the numbers are moved as the model moves its values:
flattened into tokens, put behind a class token, through norms, linear maps and the residual stream. What stands beside
them (class, distillation and register tokens) has no number. A value whose numbers are lost has no grid.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, fx

from fxtune.view import Value, View, example_size, written
from fxtune.vocabulary import CAST, DROPOUT, LAYOUT, PART, RENAMED, RESIZING

_NONE = -1
"""The number of a token that is no position."""

_AXES = (2, 3)
"""Height and width of a map B x D x h x w."""


@dataclass(frozen=True)
class Grid:
    """The grid of a sequence B x N x D.

    Attributes:
        prefix: tokens before it.
        height: of the map in the example.
        width: likewise.
        map: id of the value B x D x h x w that was flattened.
        fixed: whether the graph takes images of one size only.
    """

    prefix: int
    height: int
    width: int
    map: int
    fixed: bool


@dataclass(frozen=True)
class _Numbers:
    """The numbers of the positions in a value, in its shape; or in each value of a tuple."""

    of: Any
    map: int


class Grids:
    """The grids of a model's sequences, found when first asked for."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._numbers: dict[int, _Numbers] = {}
        self._done = 0

    def of(self, id: int) -> Grid | str:
        """The grid of a value B x N x D; or why it has none."""
        for value in self.view.values[self._done : id + 1]:
            if (found := self._number(value)) is not None:
                self._numbers[value.id] = found
        self._done = max(self._done, id + 1)
        numbers = self._numbers.get(id)
        if numbers is None:
            return "no map of a convolution is flattened into its tokens, position by position"
        if len(self.view.values[id].shape) != 3 or _varying(numbers.of) != [1]:
            return "its tokens are a map's positions, but no longer in rows of one sequence for each image"
        return self._grid(id, numbers)

    def _grid(self, id: int, numbers: _Numbers) -> Grid | str:
        sequence = numbers.of[0, :, 0].tolist()
        height, width = (self.view.values[numbers.map].shape[axis] for axis in _AXES)
        rows, columns = example_size(height), example_size(width)
        prefix = len(sequence) - rows * columns
        if prefix < 0 or sequence != [_NONE] * prefix + list(range(rows * columns)):
            return "its tokens are a map's positions, but not all of them in their order at the end"
        tokens = self.view.values[id].shape[1]
        if sympy.expand(_expression(tokens) - _expression(height) * _expression(width)) != prefix:
            return "the number of tokens before the map's positions changes with the inputs"
        fixed = not any(isinstance(size, torch.SymInt) for size in (height, width))
        return Grid(prefix, rows, columns, numbers.map, fixed)

    # ---- numbers -----------------------------------------------------------------------------------------------------

    def _number(self, value: Value) -> _Numbers | None:
        if RENAMED.get(value.op) == "conv":
            return self._first(value) if len(value.shape) == 4 else None
        known = [self._numbers[v.id] for v in value.inputs() if v.id in self._numbers]
        if not known:
            return None
        try:
            moved = self._moved(value, [numbers.of for numbers in known])
        except (RuntimeError, IndexError, TypeError, ValueError):
            return None  # an operator that does not run on numbers of positions
        return None if moved is None else _Numbers(moved, known[-1].map)

    def _first(self, value: Value) -> _Numbers:
        sizes = [example_size(size) for size in value.shape]
        rows, columns = sizes[2:]
        numbers = torch.arange(rows * columns, dtype=torch.int32).view(1, 1, rows, columns)
        return _Numbers(numbers.expand(sizes), value.id)

    def _moved(self, value: Value, known: list[Any]) -> Any:
        if value.target is operator.getitem:
            return known[0][value.args[1]]
        if value.op in CAST or value.op in DROPOUT or value.op == "contiguous" or _pads_nothing(value):
            return known[0]
        if value.op in LAYOUT or value.op in PART or value.op in _JOINING:
            return self._laid_out(value)
        if value.op in _MAPS:
            return self._mapped(value)
        return self._alone(value, known) if value.op in _ALONE else None

    def _laid_out(self, value: Value) -> Any:
        args, kwargs = fx.node.map_aggregate((value.args, value.kwargs), self._plain)
        # Numbers need not lie in memory as the values do.
        moved = args[0].reshape(args[1]) if value.op in ("view", "_unsafe_view") else value.target(*args, **kwargs)
        return tuple(map(_once, moved)) if isinstance(moved, tuple | list) else _once(moved)

    def _plain(self, argument: Any) -> Any:
        """An argument as the run of the numbers needs it."""
        if not isinstance(argument, Value):
            return example_size(argument) if isinstance(argument, torch.SymInt) else argument
        if argument.id in self._numbers:
            return self._numbers[argument.id].of
        if isinstance(argument.val, Tensor):
            sizes = [example_size(size) for size in argument.shape]
            return torch.full((1,) * len(sizes), _NONE, dtype=torch.int32).expand(sizes)
        return self._plain(argument.val)

    def _mapped(self, value: Value) -> Tensor | None:
        """A product keeps the rows of its first operand, queries in an attention say."""
        first = next(v for v in value.inputs()[value.op in _BIAS_FIRST :] if isinstance(v.val, Tensor))
        rows = self._numbers.get(first.id)
        if rows is None or rows.of.dim() - 1 in _varying(rows.of):
            return None
        return _once(rows.of[..., :1].expand([example_size(size) for size in value.shape]))

    def _alone(self, value: Value, known: list[Tensor]) -> Tensor | None:
        """Operands whose positions differ leave none."""
        shape = [example_size(size) for size in value.shape]
        first, *others = (numbers.expand(shape) for numbers in known)
        return first if all(torch.equal(first, other) for other in others) else None


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_JOINING = _names("cat concat concatenate")
_BIAS_FIRST = _names("addmm baddbmm")
_MAPS = _names("linear addmm baddbmm mm bmm matmul scaled_dot_product_attention")
"""What computes a row from a row."""

_ALONE = _names(
    """
    add sub mul div neg relu gelu silu sigmoid tanh hardswish hardtanh elu leaky_relu mish softplus pow rsqrt sqrt exp
    square reciprocal clamp clamp_min rsub abs erf softmax _softmax masked_fill
    layer_norm rms_norm _fused_rms_norm batch_norm group_norm instance_norm
    """
)
"""What computes each number alone, or a token, or a map, and leaves positions where they are."""


def _pads_nothing(value: Value) -> bool:
    return value.op in RESIZING - PART and list(map(written, value.shape)) == list(
        map(written, value.inputs()[0].shape)
    )


def _varying(numbers: Tensor) -> list[int]:
    """The axes along which numbers differ."""
    several = (axis for axis in range(numbers.dim()) if numbers.shape[axis] > 1 and numbers.stride(axis) != 0)
    return [axis for axis in several if bool((numbers.amax(axis) != numbers.amin(axis)).any())]


def _once(numbers: Tensor) -> Tensor:
    """The same numbers, written once for every axis along which they are the same: sizes are a model's own."""
    shape, varying = numbers.shape, _varying(numbers)
    for axis in range(numbers.dim()):
        if axis not in varying and shape[axis] > 1:
            numbers = numbers.narrow(axis, 0, 1)
    return numbers.expand(shape)


def _expression(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(int(size))
