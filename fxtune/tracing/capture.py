"""``capture``: from a live module to a nested fx graph that computes the same, bit by bit."""

from __future__ import annotations

import inspect
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn

from fxtune.errors import InputError
from fxtune.tracing.build import build
from fxtune.tracing.calls import Tree
from fxtune.tracing.export import export
from fxtune.tracing.flat import clean
from fxtune.tracing.modes import settle_modes
from fxtune.tracing.region import Region, assemble
from fxtune.tracing.signature import CallSignature
from fxtune.tracing.supported import check_supported


def capture(model: nn.Module, example_inputs: Any = None) -> Region:
    check_supported(model)
    args, kwargs = _inputs(model, example_inputs)
    _check_inputs(model, args, kwargs)
    exported = _in_train_mode(model, args, kwargs)
    signature = CallSignature(model, args, kwargs, exported)
    clean(exported.program.graph_module)
    tree = settle_modes(Tree(exported, model), args, kwargs)
    regions = build(tree)
    root = assemble(model, regions)
    root.call_like(signature)
    return root


def _in_train_mode(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = True
        return export(model, args, kwargs)
    finally:
        for module, training in flags:
            module.training = training


def _check_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"example_inputs do not fit the forward of this {type(model).__name__}",
            found=str(error),
            where=f"forward{signature}",
            fix="pass a tuple of arguments, a dict of keywords, or a pair of both: ((x,), {'mask': mask})",
        ) from None
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves((args, kwargs))):
        raise InputError(
            f"example_inputs for this {type(model).__name__} hold no tensor",
            where=f"forward{signature}",
            fix="pass at least one tensor, with a batch and a length of 2 or more",
        )


def _inputs(model: nn.Module, given: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs in the form (arguments, keywords)."""
    if given is None:
        from fxtune.cards import example_inputs

        return example_inputs(model)
    if isinstance(given, Tensor):
        return (given,), {}
    if isinstance(given, dict):
        return (), dict(given)
    if isinstance(given, (tuple, list)):
        if len(given) == 2 and isinstance(given[0], (tuple, list)) and isinstance(given[1], dict):
            return tuple(given[0]), dict(given[1])
        return tuple(given), {}
    raise InputError(
        "example_inputs could not be read",
        found=f"a {type(given).__name__}",
        fix="pass a tuple of arguments, a dict of keywords, or a pair of both: ((x,), {'mask': mask})",
    )
