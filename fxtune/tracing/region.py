"""A captured module: one graph at the module's own path, over the live tensors of the original."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from fxtune.tracing.build import Built
from fxtune.tracing.contexts import show_contexts
from fxtune.tracing.packing import pack, unpack
from fxtune.tracing.signature import CallSignature, SignatureCodeGen
from fxtune.tracing.writer import Writer

_OF_THE_GRAPH = {*GraphModule(nn.Module(), Graph()).__dict__} - {*nn.Module().__dict__, "meta"}
"""Attributes that a GraphModule derives from its graph."""


class Constants(nn.Module):
    """Tensors that a forward made from Python values. They move with the model, but keep their dtype as in eager."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Constants:
        for name, tensor in self._buffers.items():
            if tensor is not None:
                self._buffers[name] = tensor.to(fn(tensor).device)
        return self


class Region(GraphModule):
    """The captured form of one module: an fx graph over child regions and the model's live leaf modules.

    Its parameters and buffers are the very dicts of the original module, so both always hold the same tensors.

    Args:
        source: the original module.
        writer: holds the graph and what it needs besides the original's own tensors and children.
        children: what stands for the original's children, by name, in their order.
    """

    signature: CallSignature
    """How it is called; only the root of a captured model has one."""
    recomputed: bool = False
    """Whether a tuned model computes its activations again in the backward pass instead of keeping them."""

    def __init__(self, source: nn.Module, writer: Writer, children: dict[str, Any], title: str) -> None:
        super().__init__(nn.Module(), Graph(), title)
        self.training = source.training
        self.__dict__["_parameters"] = source._parameters
        self.__dict__["_buffers"] = source._buffers
        self.__dict__["_non_persistent_buffers_set"] = source._non_persistent_buffers_set
        self.__dict__["_modules"] = {**children, **writer.extras}
        if writer.constants:
            self._modules["constants"] = Constants(writer.constants)
        for module in writer.extras.values():
            module.train(source.training)
        self.graph = writer.graph

    @classmethod
    def restore(cls, title: str, graph: Graph, state: dict[str, Any]) -> Region:
        """A region from its graph and its other attributes: the way out of copies and pickles."""
        region = cls.__new__(cls)
        GraphModule.__init__(region, nn.Module(), Graph(), title)
        region.__dict__.update(state)
        region.graph = graph
        return region

    def __deepcopy__(self, memo: dict[int, Any]) -> Region:
        region = type(self).restore(type(self).__name__, self.graph.__deepcopy__({}), {})
        memo[id(self)] = region
        region.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self._state().items()})
        return region

    def __reduce__(self) -> Any:
        base = next(cls for cls in type(self).__mro__ if not cls.__qualname__.endswith("GraphModuleImpl"))
        return _unpickle, (base, type(self).__name__, pack(self.graph), self._state())

    def _state(self) -> dict[str, Any]:
        """All attributes that do not come from the graph."""
        return {name: value for name, value in self.__dict__.items() if name not in _OF_THE_GRAPH}

    def call_like(self, signature: CallSignature) -> None:
        """Makes this the root: called like the original model, with what the signature accepts."""
        self.signature = signature
        self.graph.set_codegen(SignatureCodeGen(signature))
        show_contexts(self.graph)
        self.recompile()

    def recompile(self) -> Any:
        """Makes ``forward`` anew from the graph (the empty graph of ``GraphModule.__init__`` needs none)."""
        return super().recompile() if len(self._graph.nodes) else None

    def _recompile_submodules(self) -> list[Any]:
        """A region's code does not hold its children's: `recompile` need not go down the whole tree at each level."""
        return []


def _unpickle(base: type[Region], title: str, packed: list[tuple[Any, ...]], state: dict[str, Any]) -> Region:
    region = base.restore(title, unpack(packed), state)
    if "signature" in state:
        region.call_like(state["signature"])
    return region


def assemble(model: nn.Module, regions: dict[int, Built]) -> Region:
    """Puts the regions in the places of their modules. What holds no region stays the live module itself."""
    made: dict[int, nn.Module] = {}

    def rebuild(module: nn.Module) -> nn.Module:
        if id(module) not in made:
            children = {name: child and rebuild(child) for name, child in module._modules.items()}
            if id(module) in regions:
                made[id(module)] = Region(module, regions[id(module)].writer, children, type(module).__name__)
            elif any(child is not module._modules[name] for name, child in children.items()):
                container = copy.copy(module)
                container.__dict__["_modules"] = children
                made[id(module)] = container
            else:
                made[id(module)] = module
        return made[id(module)]

    root = rebuild(model)
    assert isinstance(root, Region)
    return root
