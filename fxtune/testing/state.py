"""What a model holds and how it is set, and by which names two such states differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer, those as well that no state_dict holds."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.detach().clone() for name, tensor in named}


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names whose tensors are no longer bit-equal, or are there no longer or only now."""
    names = dict.fromkeys([*before, *after])
    return [name for name in names if not (name in before and name in after and same(before[name], after[name]))]


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal in shape, dtype and every bit of their values; NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def values(output: Any) -> dict[str, Tensor]:
    """The tensors of what a model returns, by their places in it: ``.logits``, ``[0]``; "" for a tensor itself."""
    return dict(_values("", output))


def _values(place: str, output: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        yield place, output
        return
    # Not by pytree.tree_flatten_with_path: libraries register their outputs without names.
    parts: Iterable[tuple[str, Any]] = ()
    if isinstance(output, Mapping):
        parts = ((f".{name}", part) for name, part in output.items())
    elif not pytree.tree_is_leaf(output):
        parts = ((f"[{i}]", part) for i, part in enumerate(pytree.tree_leaves(output)))
    for name, part in parts:
        yield from _values(place + name, part)


@dataclass(frozen=True)
class State:
    """All of a model that tuning must leave alone."""

    held: Mapping[str, Tensor]
    settings: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, model: nn.Module) -> State:
        """The state of a model, as it is now."""
        return cls(
            tensors(model),
            {
                "another object": {name: id(module) for name, module in model.named_modules()},
                "its mode": {name: module.training for name, module in model.named_modules()},
                "its hooks": {name: _hooks(module) for name, module in model.named_modules()},
                "its attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
                "its requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
                "its memory": {name: p.data_ptr() for name, p in model.named_parameters()},
            },
        )

    def differences(self, later: State) -> Iterator[str]:
        """What is not as it was, by name."""
        yield from (f"{name}: its values" for name in moved(self.held, later.held))
        for what, before in self.settings.items():
            after = later.settings[what]
            names = [name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)]
            yield from (f"{name or 'the model'}: {what}" for name in names)


def _hooks(module: nn.Module) -> int:
    return sum(len(hooks) for name, hooks in vars(module).items() if name.endswith("_hooks") and hooks)
