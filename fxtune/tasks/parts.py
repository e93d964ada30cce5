"""The part of a model that a graph uses, as a module of its own over the same memory."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx, nn

from fxtune.splitting import TUNERS, over
from fxtune.tracing import Constants, Region
from fxtune.tuned import structural_twin
from fxtune.wrapped import same_numbers


def own_part(graph: fx.Graph, root: Region, title: str) -> Region:
    """A graph over aliases of those weights and modules that it uses.

    They lie in the same memory until one of the two is moved; what trained in `root` trains here, too.
    """
    tree = used_by(graph, [root])
    trained = {name for name, weight in tree.named_parameters() if weight.requires_grad}
    twin = structural_twin(tree)
    for name, weight in twin.named_parameters():
        weight.requires_grad_(name in trained)
    return over(twin, graph, title)


def used_by(graph: fx.Graph, roots: Sequence[nn.Module]) -> nn.Module:
    """A tree of nothing but what a graph calls or reads, each from the first root that has it, at the same path."""
    tree = nn.Module()
    for target in dict.fromkeys(str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr")):
        home, _, name = target.rpartition(".")
        owner = next(found for root in roots if (found := _owner(root, home, name)) is not None)
        _put(_container(tree, home, owner), name, owner)
    return tree


def moved_like(trunk: Region, *parts: nn.Module) -> None:
    """Moves new parts to where the trunk is by now; casts them if it was cast."""
    here = next(trunk.parameters(), None)
    there = next(parts[0].parameters(), None)
    if here is None or there is None:
        return
    dtype = here.dtype if here.dtype != there.dtype else None
    for part in parts:
        part.to(here.device, dtype)


def share_frozen(branch: nn.Module, other: nn.Module) -> None:
    """Lets a branch hold the very tensors of another, where these are frozen, no tuner's, and equal."""
    theirs = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    for path, module in branch.named_modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                there = theirs.get(f"{path}.{name}" if path else name)
                if tensor is None or there is None or TUNERS in path.split("."):
                    continue
                if not (tensor.requires_grad or there.requires_grad) and _equal(tensor, there):
                    held[name] = there


def _equal(one: Tensor, other: Tensor) -> bool:
    same_kind = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
    return same_kind and same_numbers(one, other)


def _owner(root: nn.Module, home: str, name: str) -> nn.Module | None:
    """The module at a path, if it has something of this name."""
    try:
        owner = root.get_submodule(home)
    except AttributeError:
        return None
    return owner if any(name in held for held in (owner._modules, owner._parameters, owner._buffers)) else None


def _container(tree: nn.Module, path: str, owner: nn.Module) -> nn.Module:
    """The module at a path of the tree, made where there is none."""
    here = tree
    parts = path.split(".") if path else []
    for i, part in enumerate(parts):
        if part not in here._modules:
            last = i == len(parts) - 1
            here.add_module(part, Constants({}) if last and isinstance(owner, Constants) else nn.Module())
        here = here.get_submodule(part)
    return here


def _put(container: nn.Module, name: str, owner: nn.Module) -> None:
    if name in owner._modules:
        container._modules[name] = owner._modules[name]
    elif name in owner._parameters:
        container._parameters[name] = owner._parameters[name]
    else:
        buffer: Tensor | None = owner._buffers[name]
        container.register_buffer(name, buffer, persistent=name not in owner._non_persistent_buffers_set)
