"""How a captured model is called: like the original, and only with inputs that the captured graph is right for."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.graph import CodeGen

from fxtune.errors import InputError
from fxtune.tracing.export import Exported

_REQUIRED = inspect.Parameter.empty
_IMPLICIT_LOWER_BOUND = 2
"""The exporter assumes that a dynamic size is at least 2; the graph is right for 1 as well."""


@dataclass
class TensorSlot:
    """A tensor argument: each dimension is a fixed size, the name of a symbol, or None (bound by a guard)."""

    index: int
    dims: tuple[int | str | None, ...]
    kind: str


@dataclass
class Constant:
    """An argument that is no tensor: the graph holds its consequences, so it must be the same again."""

    value: Any


@dataclass
class Container:
    """A list, tuple or dict of arguments; any other pytree node is compared by its spec."""

    kind: str
    keys: tuple[Any, ...]
    children: tuple[Any, ...]


class Guard:
    """A condition on the arguments, as Python source over ``L``, the dict of arguments by name."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.text = re.sub(r"L\['(\w+)'\]", r"\1", source).replace(".size()[", ".shape[")
        self.holds: Callable[[dict[str, Any]], bool] = eval(f"lambda L: {source}", {"math": math, "torch": torch})

    def __reduce__(self) -> Any:
        return (Guard, (self.source,))

    def __deepcopy__(self, memo: Any) -> Guard:
        return self


class CallSignature:
    """Binds calls of the original ``forward`` to the graph's flat tensors, and its results to the original's type."""

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], exported: Exported) -> None:
        parameters = inspect.signature(model.forward).parameters.values()
        self.model = type(model).__name__
        self.positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        self.defaults = {p.name: p.default for p in parameters if p.name in self.names}
        self.rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
        self.keywords = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
        in_spec, out_spec = exported.program.call_spec.in_spec, exported.program.call_spec.out_spec
        assert in_spec is not None and out_spec is not None
        self.out_spec = out_spec
        self.single = out_spec.is_leaf()
        self.inputs = [node.name for node in exported.inputs.values()]
        self.bounds = _bounds(exported)
        order = {position: i for i, position in enumerate(exported.inputs)}
        marked_args, marked_kwargs = pytree.tree_unflatten([_Mark(i) for i in range(in_spec.num_leaves)], in_spec)
        given = dict(enumerate(_leaves_like(args, kwargs, marked_kwargs)))
        self.template = {
            name: self._slot(value, given, order, exported)
            for name, value in self._arguments(tuple(marked_args), marked_kwargs).items()
        }
        arguments = self._arguments(args, kwargs)
        tensors = [value for _, value in sorted(given.items()) if isinstance(value, Tensor)]
        self.batched = _batched(tensors, list(exported.inputs.values()))
        self.guards = [guard for guard in _guards(exported) if _true(guard, self._scope(arguments))]

    def __deepcopy__(self, memo: dict[int, Any]) -> CallSignature:
        return self

    def accepts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """None if the graph is right for this call, else the reason why it is not."""
        outcome = self._match(args, kwargs)
        return outcome if isinstance(outcome, str) else None

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The graph's flat tensor inputs.

        Raises:
            InputError: the graph was captured for other inputs.
        """
        outcome = self._match(args, kwargs)
        if isinstance(outcome, str):
            raise InputError(
                f"this captured {self.model} does not fit the call",
                found=outcome,
                fix="capture the model again with example_inputs like these",
            )
        return outcome

    def tensors(self) -> list[tuple[str, tuple[int | str | None, ...]]]:
        """Place (``x``, ``added['ids']``) and dimensions of each tensor that `bind` gives, in its order.

        A dimension is a fixed size, the name of a symbol that may vary (within `bounds`, where it has some), or None
        where a condition binds it.
        """
        slots = {
            slot.index: (place, slot.dims) for name, top in self.template.items() for place, slot in _in(top, name)
        }
        return [slots[index] for index in sorted(slots)]

    def result(self, values: Any) -> Any:
        """The original's return value from the graph's flat outputs."""
        if self.single:
            return values
        return pytree.tree_unflatten([values] if self.out_spec.num_leaves == 1 else list(values), self.out_spec)

    def _match(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor] | str:
        arguments = self._arguments(args, kwargs)
        if isinstance(arguments, str):
            return arguments
        flat: dict[int, Tensor] = {}
        sizes: dict[str, tuple[int, str]] = {}
        for name, slot in self.template.items():
            reason = self._fill(slot, arguments[name], name, flat, sizes)
            if reason is not None:
                return reason
        for symbol, (size, place) in sizes.items():
            low, high = self.bounds.get(symbol, (None, None))
            if high is not None and size > high:
                return f"{place} is {size}, more than {high}"
            if low is not None and size < low:
                return f"{place} is {size}, less than {low}"
        batches = [flat[i].shape[0] for i in self.batched]
        if any(size != batches[0] for size in batches[1:]):  # symbolic ones, in an export, cannot be put into a set
            return f"the inputs' batch sizes differ: {', '.join(map(str, batches))}"
        scope = self._scope(arguments)
        for guard in self.guards:
            if not guard.holds(scope):
                return f"{guard.text} does not hold"
        return [flat[i] for i in range(len(self.inputs))]

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """All arguments by name, defaults filled in; a string if the call does not fit the original's signature."""
        bound: dict[str, Any] = {}
        count = len(self.positional)
        if len(args) > count and self.rest is None:
            return f"{len(args)} positional arguments, where {self.model}.forward takes {count}"
        for name, value in zip(self.positional, args, strict=False):
            bound[name] = value
        more: dict[str, Any] = {}
        for name, value in kwargs.items():
            if name in bound:
                return f"two values for argument {name!r}"
            if name in self.names:
                bound[name] = value
            elif self.keywords is not None:
                more[name] = value
            else:
                return f"an unknown argument {name!r}"
        for name in self.names:
            if name not in bound:
                if self.defaults[name] is _REQUIRED:
                    return f"no argument {name!r}"
                bound[name] = self.defaults[name]
        if self.rest is not None:
            bound[self.rest] = tuple(args[count:])
        if self.keywords is not None:
            bound[self.keywords] = more
        return bound

    def _scope(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments if self.keywords is None else {**arguments, **arguments[self.keywords]}

    def _slot(self, value: Any, given: dict[int, Any], order: dict[int, int], exported: Exported) -> Any:
        if isinstance(value, _Mark):
            if value.position not in order:
                return Constant(given[value.position])
            node = exported.inputs[value.position]
            return TensorSlot(order[value.position], _dims(node.meta["val"]), _kind(node.meta["val"]))
        if isinstance(value, (list, tuple)):
            children = tuple(self._slot(child, given, order, exported) for child in value)
            return Container(type(value).__name__, tuple(range(len(value))), children)
        if isinstance(value, dict):
            children = tuple(self._slot(child, given, order, exported) for child in value.values())
            return Container("dict", tuple(value), children)
        return Constant(value)

    def _fill(
        self, slot: Any, value: Any, place: str, flat: dict[int, Tensor], sizes: dict[str, tuple[int, str]]
    ) -> str | None:
        """Puts the tensors of one argument into ``flat``; a reason if it is not like the captured one."""
        if isinstance(slot, TensorSlot):
            return _fill_tensor(slot, value, place, flat, sizes)
        if isinstance(slot, Container):
            if type(value).__name__ != slot.kind:
                return f"{place} is {_describe(value)}, captured as a {slot.kind}"
            keys = tuple(value) if isinstance(value, dict) else tuple(range(len(value)))
            if set(keys) != set(slot.keys):
                what = "the keywords are" if place == self.keywords else f"{place} has"
                return f"{what} {_listed(keys)}, captured with {_listed(slot.keys)}"
            for key, child in zip(slot.keys, slot.children, strict=True):
                reason = self._fill(child, value[key], f"{place}[{key!r}]", flat, sizes)
                if reason is not None:
                    return reason
            return None
        if not _equal(value, slot.value):
            return f"{place} is {_describe(value)}, captured as {_describe(slot.value)}"
        return None


class SignatureCodeGen(CodeGen):
    """Writes a root region's ``forward`` so that it is called, and returns, like the original."""

    def __init__(self, signature: CallSignature) -> None:
        super().__init__()
        self.signature = signature

    def gen_fn_def(self, free_vars: list[str], maybe_return_annotation: str, **options: Any) -> str:
        head = super().gen_fn_def(["*args", "**kwargs"], maybe_return_annotation, **options)
        names = "".join(f"{name.split(':')[0].strip()}, " for name in free_vars)
        return head + f"\n    {names}= self.signature.bind(args, kwargs)" if names else head

    def generate_output(self, output_args: Any, **options: Any) -> str:
        write = options.get("repr_fn") or repr
        return f"return self.signature.result({write(output_args)})"

    def process_inputs(self, *args: Any) -> Any:  # type: ignore[override]
        return self.signature.bind(args, {})

    def process_outputs(self, outputs: Any) -> Any:
        return self.signature.result(outputs)


@dataclass(frozen=True)
class _Mark:
    position: int


def _leaves_like(args: tuple[Any, ...], kwargs: dict[str, Any], ordered: dict[str, Any]) -> list[Any]:
    """The call's leaves in the exporter's order, which sorts keywords its own way."""
    return pytree.tree_leaves((args, {name: kwargs[name] for name in ordered}), is_leaf=lambda leaf: leaf is None)


def _in(slot: Any, place: str) -> Iterator[tuple[str, TensorSlot]]:
    if isinstance(slot, TensorSlot):
        yield place, slot
    elif isinstance(slot, Container):
        for key, child in zip(slot.keys, slot.children, strict=True):
            yield from _in(child, f"{place}[{key!r}]")


def _fill_tensor(
    slot: TensorSlot, value: Any, place: str, flat: dict[int, Tensor], sizes: dict[str, tuple[int, str]]
) -> str | None:
    if not isinstance(value, Tensor):
        return f"{place} is {_describe(value)}, captured as a tensor"
    if _kind(value) != slot.kind:
        return f"{place} is of {_kind(value)} dtype, captured with {slot.kind}"
    if value.dim() != len(slot.dims):
        return f"{place} has {value.dim()} dimensions, captured with {len(slot.dims)}"
    for i, dim in enumerate(slot.dims):
        size = value.shape[i]
        if isinstance(dim, str):
            if dim not in sizes:
                sizes[dim] = (size, f"{place}.shape[{i}]")
            elif size != sizes[dim][0]:
                return f"{place}.shape[{i}] is {size}, but {sizes[dim][1]} is {sizes[dim][0]}"
        elif dim is not None and size != dim:
            return f"{place}.shape[{i}] is {size}, captured with {dim}"
    flat[slot.index] = value
    return None


def _batched(tensors: list[Tensor], nodes: list[Node]) -> list[int]:
    """The inputs whose first dimension is the batch: dynamic, and equal in the example wherever it is dynamic. The
    exporter itself lets two of them differ if no operator has to compare them."""
    varying = [
        i for i, node in enumerate(nodes) if tensors[i].dim() and not isinstance(_dims(node.meta["val"])[0], int)
    ]
    return varying if len({tensors[i].shape[0] for i in varying}) == 1 else []


def _dims(value: Tensor) -> tuple[int | str | None, ...]:
    dims: list[int | str | None] = []
    for size in value.shape:
        if isinstance(size, int):
            dims.append(size)
        else:
            expression = size.node.expr
            dims.append(int(expression) if expression.is_Integer else str(expression) if expression.is_Symbol else None)
    return tuple(dims)


def _kind(value: Tensor) -> str:
    if value.dtype.is_floating_point:
        return "floating"
    if value.dtype.is_complex:
        return "complex"
    return "boolean" if value.dtype is torch.bool else "integer"


def _bounds(exported: Exported) -> dict[str, tuple[int | None, int | None]]:
    bounds: dict[str, tuple[int | None, int | None]] = {}
    for symbol, limits in exported.program.range_constraints.items():
        low, high = (int(limit) if limit.is_Integer else None for limit in (limits.lower, limits.upper))
        low = None if low is None or low <= _IMPLICIT_LOWER_BOUND else low
        if low is not None or high is not None:
            bounds[str(symbol)] = (low, high)
    return bounds


def _guards(exported: Exported) -> list[Guard]:
    """The exporter's own conditions on the inputs. (It has no public name for them; sizes are checked without.)"""
    guards = []
    for source in getattr(exported.program, "_guards_code", None) or ():
        try:
            guards.append(Guard(source))
        except SyntaxError:
            continue
    return guards


def _true(guard: Guard, scope: dict[str, Any]) -> bool:
    try:
        return bool(guard.holds(scope))
    except (AttributeError, IndexError, KeyError, NameError, TypeError):
        return False


def _equal(value: Any, captured: Any) -> bool:
    return value is captured or (type(value) is type(captured) and bool(value == captured))


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "not given" if value is None else repr(value)


def _listed(keys: tuple[Any, ...]) -> str:
    return ", ".join(map(repr, keys)) or "nothing"
