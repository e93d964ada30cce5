"""Comparisons of a captured model with the original, bit by bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn


@dataclass
class Outcome:
    """What one call did: outputs, gradients of weights and inputs, buffers afterwards, random numbers drawn."""

    result: Any
    tensors: dict[str, Tensor | None]


def run(module: nn.Module, args: Any, kwargs: Any, *, training: bool, names: nn.Module | None = None) -> Outcome:
    """One seeded forward and backward. Buffers are put back; ``names`` gives the weights their names."""
    named = names or module
    module.train(training)
    args, kwargs = pytree.tree_map_only(Tensor, _leaf, (args, kwargs))
    buffers = dict(named.named_buffers())
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    named.zero_grad()
    torch.manual_seed(1234)
    result = module(*args, **kwargs)
    outputs = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    tensors: dict[str, Tensor | None] = {f"output {i}": leaf.detach() for i, leaf in enumerate(outputs)}
    loss = sum(
        (leaf.float() * torch.linspace(-1, 1, leaf.numel()).view_as(leaf)).sum()
        for leaf in outputs
        if leaf.requires_grad
    )
    if isinstance(loss, Tensor):
        loss.backward()
    inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    tensors.update({f"gradient of input {i}": leaf.grad for i, leaf in enumerate(inputs)})
    tensors.update({f"gradient of {name}": _copy(weight.grad) for name, weight in named.named_parameters()})
    tensors.update({f"buffer {name}": buffer.clone() for name, buffer in buffers.items()})
    tensors["random state"] = torch.get_rng_state()
    with torch.no_grad():
        for name, buffer in buffers.items():
            buffer.copy_(before[name])
    named.zero_grad()
    return Outcome(result, tensors)


def assert_equal_to_eager(captured: nn.Module, model: nn.Module, args: Any, kwargs: Any) -> None:
    """Largest difference exactly 0 in both modes: outputs, gradients, buffers; same return type."""
    for training in (False, True):
        expected = run(model, args, kwargs, training=training)
        found = run(captured, args, kwargs, training=training, names=model)
        assert_same(found, expected, "training" if training else "evaluation")


def assert_same(found: Outcome, expected: Outcome, mode: str) -> None:
    assert type(found.result) is type(expected.result)
    assert pytree.tree_structure(found.result) == pytree.tree_structure(expected.result)
    assert found.tensors.keys() == expected.tensors.keys()
    for name, value in expected.tensors.items():
        other = found.tensors[name]
        assert (value is None) == (other is None), f"{name} in {mode}: {value} against {other}"
        if value is not None and other is not None:
            assert value.dtype == other.dtype and value.shape == other.shape
            assert torch.equal(value, other) or _both_nan(value, other), (
                f"{name} differs in {mode}: {_distance(value, other)}"
            )


def assert_state_kept(captured: nn.Module, model: nn.Module) -> None:
    """The same tensors under the same keys in the same order."""
    ours, theirs = captured.state_dict(keep_vars=True), model.state_dict(keep_vars=True)
    assert list(ours) == list(theirs)
    assert all(ours[key] is theirs[key] for key in theirs)
    assert [name for name, _ in captured.named_parameters()] == [name for name, _ in model.named_parameters()]


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.clone().requires_grad_(tensor.is_floating_point())


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def _both_nan(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max())
