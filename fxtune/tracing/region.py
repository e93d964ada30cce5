"""A captured module: one graph at the module's own path, over the live tensors of the original."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from fxtune.tracing.build import Built


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
    """

    def __init__(self, source: nn.Module, built: Built, children: dict[str, nn.Module]) -> None:
        super().__init__(nn.Module(), Graph(), type(source).__name__)
        self.training = source.training
        self.__dict__["_parameters"] = source._parameters
        self.__dict__["_buffers"] = source._buffers
        self.__dict__["_non_persistent_buffers_set"] = source._non_persistent_buffers_set
        self.__dict__["_modules"] = children
        for name, module in built.extras.items():
            children[name] = module
        if built.constants:
            children["constants"] = Constants(built.constants)
        self.graph = built.graph

    def recompile(self) -> Any:
        """Makes ``forward`` anew from the graph (the empty graph of ``GraphModule.__init__`` needs none)."""
        return super().recompile() if len(self._graph.nodes) else None


def assemble(model: nn.Module, regions: dict[int, Built]) -> Region:
    """Puts the regions in the places of their modules. What holds no region stays the live module itself."""
    made: dict[int, nn.Module] = {}

    def rebuild(module: nn.Module) -> nn.Module:
        if id(module) not in made:
            children = {
                name: child if child is None else rebuild(child) for name, child in module._modules.items()
            }
            built = regions.get(id(module))
            if built is not None:
                made[id(module)] = Region(module, built, children)  # type: ignore[arg-type]
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
