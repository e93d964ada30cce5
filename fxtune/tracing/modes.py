"""What depends on the mode or on the model's dtype: found by a second export, written into the first graph."""

from __future__ import annotations

import contextlib
import copy
import operator
import re
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.node import map_aggregate

from fxtune.errors import CaptureError
from fxtune.tracing.align import EXTREMES, Alignment, Block, DifferentResults
from fxtune.tracing.calls import Call, Tree
from fxtune.tracing.export import export
from fxtune.tracing.flat import acts, clean, is_size
from fxtune.tracing.region import Region
from fxtune.tracing.writer import Writer, op_name


class ByMode(nn.Module):
    """One step of a model that differs by mode: two graphs over the same inputs, without weights of their own."""

    def __init__(self, name: str, in_training: Region, in_evaluation: Region) -> None:
        super().__init__()
        self.name = name
        self.in_training = in_training
        self.in_evaluation = in_evaluation

    def forward(self, *inputs: Tensor) -> Any:
        return self.in_training(*inputs) if self.training else self.in_evaluation(*inputs)

    def _get_name(self) -> str:
        return self.name


def settle_modes(tree: Tree, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tree:
    """Makes the exported graph of ``tree`` follow mode and dtype, and returns its tree anew.

    A second export, of a copy without storage in evaluation mode and in another dtype, is made only if a module that is
    not kept live read ``training``, if one that is kept gave another shape than it got (drops tokens, say), or if a
    literal of the graph may stand for the model's dtype.
    """
    if not _may_depend(tree):
        return tree
    dtype = _other_dtype(tree.model)
    second = _second(tree, args, kwargs, dtype, training=False, dynamic=False)
    alignment = _align(tree, second)
    if alignment is None or any(_unclear(block) for block in alignment.segments):
        second = _second(tree, args, kwargs, dtype, training=False, dynamic=True)
        alignment = _align(tree, second)
        if alignment is None:
            raise CaptureError(
                f"cannot capture a {type(tree.model).__name__}",
                found="it returns something else in evaluation mode than in training mode",
                fix="make forward return the same structure in both modes",
            )
    _mark(alignment)
    if any(_has_dtype(node) for block in alignment.segments for node in block.nodes()[0]):
        trained = _align(tree, _second(tree, args, kwargs, dtype, training=True, dynamic=True))
        if trained is not None:
            _mark(trained)
    for block in alignment.segments:
        _replace(tree, second, alignment, block)
    return Tree(tree.exported, tree.model, tree.dissolved)


def _may_depend(tree: Tree) -> bool:
    for call in tree.root.walk():
        if call.folded:
            if tree.exported.observed.reads_mode(call.module) and _reshapes(call):
                return True
            continue
        if tree.exported.observed.reads_mode(call.module):
            return True
        if any(_has_dtype(item) for item in call.items if isinstance(item, Node)):
            return True
    return any(tree.exported.observed.reads_mode(tree.modules[path]) for path in tree.dissolved)


def _reshapes(call: Call) -> bool:
    """Whether a leaf gives another shape than it gets: then sizes written down behind it may depend on the mode."""
    taken = {_shape(node) for node in call.inputs}
    return any(_shape(node) not in taken for node in call.outputs)


def _shape(node: Node) -> str:
    return str(tuple(getattr(node.meta.get("val"), "shape", ())))


def _has_dtype(node: Node) -> bool:
    """Whether a literal of the node is a floating dtype, or an extreme of one."""
    found = False

    def look(value: Any) -> Any:
        nonlocal found
        if isinstance(value, torch.dtype):
            found = found or value.is_floating_point
        elif isinstance(value, float):
            found = found or value in _EXTREMES
        return value

    map_aggregate(node.args, look)
    map_aggregate(node.kwargs, look)
    return found


_EXTREMES = {
    getattr(torch.finfo(dtype), name)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    for name in EXTREMES
}


def _other_dtype(model: nn.Module) -> torch.dtype:
    dtypes = {tensor.dtype for tensor in model.parameters()}
    return torch.float32 if torch.float64 in dtypes else torch.float64


def _second(
    tree: Tree, args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype, *, training: bool, dynamic: bool
) -> Tree:
    """The export of a copy of the model that has no storage."""

    fake = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def unreal(tensor: Tensor) -> Tensor:
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        with contextlib.nullcontext() if tensor.is_meta else fake:
            made = torch.empty_strided(tensor.shape, tensor.stride(), dtype=kind, device=tensor.device)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(made, tensor.requires_grad)
        return made.requires_grad_(tensor.requires_grad)

    model = tree.model
    memo: dict[int, Any] = {id(t): unreal(t) for t in [*model.parameters(), *model.buffers()]}
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        module.training = training
    args, kwargs = pytree.tree_map_only(Tensor, unreal, (args, kwargs))
    exported = export(twin, args, kwargs, dynamic=dynamic)
    clean(exported.program.graph_module)
    return Tree(exported, twin, tree.dissolved)


def _align(first: Tree, second: Tree) -> Alignment | None:
    try:
        return Alignment(first, second)
    except DifferentResults:
        return None


def _unclear(block: Block) -> bool:
    """Whether a segment may stem from fixed sizes rather than from the mode: it has steps of the second export alone,
    or lacks some without a random or in-place one among them."""
    ours, theirs = block.nodes()
    if [node.target for node in ours] == [node.target for node in theirs]:
        return False
    return not {node.target for node in theirs} <= {node.target for node in ours} or not any(
        acts(node.target) for node in ours
    )


def _mark(alignment: Alignment) -> None:
    for node, places in alignment.follows.items():
        node.meta.setdefault("follows", {}).update(places)
    for node in alignment.typed:
        node.meta["typed"] = True


def _replace(tree: Tree, second: Tree, alignment: Alignment, block: Block) -> None:
    """Puts one call of a two-graph module in the place of a segment."""
    ours, theirs = block.nodes()
    inputs = _inputs(tree, alignment, ours, theirs)
    name = _name(ours, theirs)
    results = list(block.results)
    sizes = _sizes(ours, theirs)
    while True:
        partners = [alignment.partner(node) or node for node in inputs]
        training = _graph(tree, block.call, inputs, inputs, ours, [a for a, _ in results], {})
        evaluation = _graph(second, block.call, partners, inputs, theirs, [b for _, b in results], sizes)
        missing = [*training.inputs[len(inputs) :], *evaluation.inputs[len(inputs) :]]
        if not missing:
            break
        inputs = list(dict.fromkeys([*inputs, *(_size_in(tree, size) for size in missing)]))
    title = name.title().replace("_", "")
    module = ByMode(title, _region(training, title), _region(evaluation, title))
    flat = tree.exported.graph
    vals = tuple(a.meta["val"] for a, _ in results)
    stack = _stack(block.call)
    with _after(flat, alignment, block):
        node = flat.create_node("call_module", name, tuple(inputs), {}, name=name)
        outs = [node]
        if len(vals) > 1:
            outs = [flat.call_function(operator.getitem, (node, i)) for i in range(len(vals))]
    node.meta = {**stack, "val": vals[0] if len(vals) == 1 else vals, "module": module, "body": training.graph}
    for ((value, _), readers), out, val in zip(block.results.items(), outs, vals, strict=False):
        out.meta = {**out.meta, **stack, "val": val}
        if value in ours:
            value.replace_all_uses_with(out, delete_user_cb=lambda user: user not in ours)
        else:
            for reader in readers:
                reader.replace_input_with(value, out)
    if len(vals) > 1:
        node.meta["val"] = vals
    for old in reversed(ours):
        flat.erase_node(old)


def _inputs(tree: Tree, alignment: Alignment, ours: list[Node], theirs: list[Node]) -> list[Node]:
    """The first export's values that either side of a segment reads."""
    inside = {*ours, *theirs}
    needed: dict[Node, None] = {}
    for node in [*ours, *theirs]:
        for value in node.all_input_nodes:
            if value in inside or is_size(value):
                continue
            outer = value if node in set(ours) else alignment.origin(value)
            if outer is None:
                raise AssertionError(f"{value} exists in evaluation mode only")
            if outer not in tree.exported.constants:
                needed[outer] = None
    return list(needed)


def _graph(
    tree: Tree,
    call: Call,
    inputs: list[Node],
    same: list[Node],
    nodes: list[Node],
    results: list[Node],
    sizes: dict[Node, tuple[Any, Any]],
) -> Writer:
    """One side of a segment as a graph.

    Args:
        inputs: the side's own values for its inputs; ``same`` those of the first export.
        sizes: arguments of nodes in which sizes that this side fixed are symbolic.
    """
    writer = Writer(tree, call.path)
    for node, first in zip(inputs, same, strict=True):
        placeholder = writer.placeholder(node, re.sub(r"_\d+$", "", first.name))
        if first is not node:
            writer.env[first] = placeholder
            writer.sized.append((first, placeholder))
    for node in nodes:
        writer.copy(node, *sizes.get(node, (None, None)))
    values = tuple(writer.value(node) for node in results)
    writer.finish(values[0] if len(values) == 1 else values)
    return writer


def _size_in(tree: Tree, size: Node) -> Node:
    """The first export's node for a size that a segment of either export reads."""
    if size.graph is tree.exported.graph:
        return size
    candidates = (node for node in tree.exported.graph.nodes if is_size(node))
    found: Node = next(node for node in candidates if str(node.meta["val"]) == str(size.meta["val"]))
    return found


def _region(writer: Writer, title: str) -> Region:
    return Region(nn.Module(), writer, {}, title)


def _sizes(ours: list[Node], theirs: list[Node]) -> dict[Node, tuple[Any, Any]]:
    """For each of their steps that is one of ours with fixed sizes: its arguments with our symbolic ones."""
    found: dict[Node, tuple[Any, Any]] = {}
    same = [node for node in ours if node.target in {other.target for other in theirs}]
    for a, b in zip(same, theirs, strict=False):
        if a.target is b.target and len(a.args) == len(b.args):
            found[b] = (_symbolic(a.args, b.args), {k: _symbolic(a.kwargs.get(k), v) for k, v in b.kwargs.items()})
    return found


def _symbolic(a: Any, b: Any) -> Any:
    if isinstance(b, int) and isinstance(a, Node) and is_size(a):
        return a
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return type(b)(_symbolic(x, y) for x, y in zip(a, b, strict=True))
    return b


def _name(ours: list[Node], theirs: list[Node]) -> str:
    """Named after the one operator that both sides have, if there is one."""
    both = {op_name(node.target) for node in ours} & {op_name(node.target) for node in theirs}
    return both.pop() if len(both) == 1 else "by_mode"


def _stack(call: Call) -> dict[str, Any]:
    """The node metadata that says a node belongs to ``call``."""
    node = next(iter(call.nodes()))
    whole = node.meta["nn_module_stack"]
    kept: dict[str, Any] = {}
    for key, entry in whole.items():
        kept[key] = entry
        if key == call.key:
            break
    if call.parent is None:
        kept = dict(list(whole.items())[:1])
    return {"nn_module_stack": kept, "contexts": node.meta.get("contexts", ())}


def _after(flat: Graph, alignment: Alignment, block: Block) -> Any:
    """The insertion point behind a segment's last step."""
    blocks = alignment.blocks[block.call]
    at = blocks.index(block)
    for earlier in reversed(blocks[: at + 1]):
        nodes = earlier.nodes()[0]
        if nodes and nodes[-1].graph is flat:
            return flat.inserting_after(nodes[-1])
    later = next(node for after in blocks[at:] for node in after.nodes()[0])
    return flat.inserting_before(later)
