"""One run of ``torch.export`` over a live model: the flat ATen graph, and what the modules did while it was traced.

The model comes out as it went in: attributes, training flags and tensors are put back whatever happens.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import logging
import operator
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.fx import Graph, Node

from fxtune.errors import CaptureError
from fxtune.wrapped import is_wrapped, stand_in

LIFTED = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}
"""Tensors of the model, which the exported graph takes as leading placeholders."""


@dataclass
class Observed:
    """What modules did during the export. A module is known by the id of its ``__dict__``: the exporter calls
    proxies of modules, which share it."""

    unary: dict[int, bool] = field(default_factory=dict)
    """True where each call took one positional tensor, nothing else, and returned one tensor."""
    readers: set[int] = field(default_factory=set)
    """Modules that read ``self.training`` while their own forward ran."""
    calls: Counter[int] = field(default_factory=Counter)

    def single(self, module: nn.Module) -> bool:
        return self.unary.get(id(module.__dict__), False)

    def times(self, module: nn.Module) -> int:
        """How often a module was called."""
        return self.calls[id(module.__dict__)]

    def reads_mode(self, module: nn.Module) -> bool:
        return id(module.__dict__) in self.readers


@dataclass
class Exported:
    """The flat graph of one export.

    Args:
        program: the exported program; its graph is edited in place by the rooms' later steps.
        tensors: lifted placeholder -> the model's live parameter, buffer, or constant.
        constants: the lifted placeholders which are neither parameter nor buffer.
        inputs: placeholder of each tensor input, by its position among the flat inputs.
        observed: what the modules did.
    """

    program: torch.export.ExportedProgram
    tensors: dict[Node, Tensor]
    constants: dict[Node, str]
    inputs: dict[int, Node]
    observed: Observed

    @property
    def graph(self) -> Graph:
        graph: Graph = self.program.graph_module.graph
        return graph


def export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, dynamic: bool = True) -> Exported:
    """Exports ``model`` in the mode it is in.

    Args:
        dynamic: let every dimension of an input that is 2 or more vary; else fix all sizes.

    Raises:
        CaptureError: naming the line of the model's code that could not be exported.
    """
    shapes = _dynamic_dims((args, kwargs)) if dynamic else None
    with _quiet(), _restored(model), _observed(model) as observed:
        _unwrap(model)
        try:
            program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            raise _capture_error(model, error) from error
    return _read(model, program, observed)


def _dynamic_dims(inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    """Dim.AUTO for each dimension of 2 or more. One of size 1 stays fixed: the exporter would fix it anyway."""
    collection = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
    seen: set[int] = set()
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, Tensor) and id(leaf) not in seen:
            seen.add(id(leaf))
            dims = {i: torch.export.Dim.AUTO for i, size in enumerate(leaf.shape) if size > 1}
            if dims:
                collection[leaf] = dims
    return collection if seen else None


def _read(model: nn.Module, program: torch.export.ExportedProgram, observed: Observed) -> Exported:
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    state: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    state.update(model.named_buffers(remove_duplicate=False))
    tensors: dict[Node, Tensor] = {}
    constants: dict[Node, str] = {}
    inputs: dict[int, Node] = {}
    position = 0
    for spec, node in zip(program.graph_signature.input_specs, placeholders, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            if isinstance(node.meta.get("val"), Tensor):
                inputs[position] = node
            position += 1
        elif spec.kind in LIFTED:
            target = str(spec.target)
            if spec.kind is InputKind.CONSTANT_TENSOR:
                constants[node] = target
                tensors[node] = program.constants[target]
            else:
                tensors[node] = state[target]
        else:
            raise CaptureError(
                f"cannot capture a {type(model).__name__}",
                found=f"the graph needs {spec.target!r}, a {spec.kind.name.lower()}, which is no tensor",
                fix="keep such objects out of forward",
            )
    return Exported(program, tensors, constants, inputs, observed)


@contextlib.contextmanager
def _observed(model: nn.Module) -> Iterator[Observed]:
    """Records calls by hooks, and reads of ``training`` by a property over the instance attribute."""
    observed = Observed()
    running: list[int] = []

    def enter(module: nn.Module, args: Any) -> None:
        running.append(id(module.__dict__))

    def leave(module: nn.Module, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        me = id(module.__dict__)
        if running and running[-1] == me:
            running.pop()
        observed.calls[me] += 1
        unary = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(result, Tensor)
        observed.unary[me] = unary and observed.unary.get(me, True)

    def read(module: nn.Module) -> bool:
        if id(module.__dict__) in running:
            observed.readers.add(id(module.__dict__))
        return bool(module.__dict__["training"])

    def write(module: nn.Module, value: bool) -> None:
        module.__dict__["training"] = value

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
    nn.Module.training = property(read, write)  # type: ignore[assignment]
    try:
        yield observed
    finally:
        del nn.Module.training
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Puts back every module's attributes, and the dicts among them (parameters, buffers, children, hooks)."""
    before = []
    for module in model.modules():
        state = module.__dict__
        before.append((state, dict(state), [(v, dict(v)) for v in state.values() if isinstance(v, dict)]))
    grads = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    try:
        yield
    finally:
        for state, attributes, dicts in before:
            for live, saved in [(state, attributes), *dicts]:
                if [*live] != [*saved] or not all(map(operator.is_, live.values(), saved.values())):
                    live.clear()
                    live.update(saved)
        for parameter, grad, needed in grads:
            parameter.grad = grad
            if parameter.requires_grad != needed:
                parameter.requires_grad_(needed)


def _unwrap(model: nn.Module) -> None:
    """Puts a plain tensor in the place of each that wraps others, for as long as the model is exported: how those
    compute is their own affair, and none of the model's graph."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and is_wrapped(tensor):
                    held[name] = made.setdefault(id(tensor), stand_in(tensor))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's warnings and log lines are about choices that this room checks itself."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


def _capture_error(model: nn.Module, error: BaseException) -> CaptureError:
    where = _line_of_model(error)
    reason = str(error).strip().splitlines()
    return CaptureError(
        f"cannot capture a {type(model).__name__}",
        found=f"{type(error).__name__}: {reason[0] if reason else 'no message'}",
        where=where,
        fix="make that line depend on shapes and flags only, not on the values of tensors, or move it out of forward",
    )


def _line_of_model(error: BaseException) -> str | None:
    """The innermost line that ran outside torch, this package and the standard library."""
    best: str | None = None
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        for frame, line in traceback.walk_tb(link.__traceback__):
            code = frame.f_code
            if _is_of_model(code.co_filename):
                text = linecache.getline(code.co_filename, line).strip()
                best = f"{code.co_filename}:{line} in {code.co_name}: {text}"
        link = link.__cause__ or link.__context__
    return best


def _is_of_model(filename: str) -> bool:
    path = Path(filename)
    if path.is_relative_to(_LIBRARY) and "site-packages" not in path.parts:
        return False
    return not filename.startswith("<") and not any(path.is_relative_to(root) for root in _NOT_MODELS)


_LIBRARY = Path(linecache.__file__).parent
_NOT_MODELS = (Path(torch.__file__).parent, Path(sympy.__file__).parent, Path(__file__).parent)
