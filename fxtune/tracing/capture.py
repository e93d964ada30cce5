"""``capture``: from a live module to a nested fx graph that computes the same, bit by bit."""

from __future__ import annotations

import inspect
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn

from fxtune import cards
from fxtune.errors import InputError
from fxtune.modes import modes_kept
from fxtune.tracing.build import build
from fxtune.tracing.calls import Tree
from fxtune.tracing.export import Exported, export
from fxtune.tracing.flat import clean
from fxtune.tracing.modes import settle_modes
from fxtune.tracing.region import Region, assemble
from fxtune.tracing.signature import CallSignature
from fxtune.tracing.supported import check_supported


def capture(model: nn.Module, example_inputs: Any = None) -> Region:
    """Captures a model as nested fx graphs over its own leaf modules.

    The result computes bit for bit what the model does, in training and in evaluation mode, and is called like it. It
    is live: it holds the model's own parameters, buffers and leaf modules, so that moving, casting or loading the one
    does the same to the other, and ``train()`` of the result sets the flags of the shared leaves. Copy the result
    (``copy.deepcopy``) to have it stand alone.

    Args:
        model: any module that torch.export can follow. It comes out as it went in.
        example_inputs: a tuple of arguments, a dict of keywords, or a pair of both; by default those of the model's
            card. Dimensions of 2 or more may vary afterwards as far as the model's code lets them; a dimension of 1,
            a flag, and the set of optional inputs stay fixed.

    Returns:
        The root region. Regions lie at the paths of the modules that they stand for, state_dict keys and their order
        are the model's. Its ``signature`` tells whether a call fits.

    Raises:
        CaptureError: torch.export cannot follow the model; names the line of the model's code.
        InputError: no example inputs are known, or they do not fit the model's forward.
        UnsupportedModelError: the model is compiled, wrapped, sharded, quantised or holds another library's adapters.
    """
    check_supported(model)
    args, kwargs = _distinct(*call_inputs(model, example_inputs))
    _check_inputs(model, args, kwargs)
    exported = _export_in_training(model, args, kwargs)
    signature = CallSignature(model, args, kwargs, exported)
    clean(exported.program.graph_module)
    tree = settle_modes(Tree(exported, model), args, kwargs)
    regions = build(tree)
    root = assemble(model, regions)
    root.call_like(signature)
    return root


def _export_in_training(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exported:
    with modes_kept(model.modules()):
        for module in model.modules():
            module.training = True
        return export(model, args, kwargs)


def _distinct(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A tensor that is passed twice (ids that are labels, too) as two: the graph would read one of them for both."""
    seen: set[int] = set()

    def apart(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in seen:
            return value.detach().clone().requires_grad_(value.requires_grad)
        seen.add(id(value))
        return value

    found: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map(apart, (args, kwargs))
    return found


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


def call_inputs(model: nn.Module, given: Any = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs in the form (arguments, keywords).

    Raises:
        InputError: none are given or known, or they have another form.
    """
    if given is None:
        return cards.example_inputs(model)
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
