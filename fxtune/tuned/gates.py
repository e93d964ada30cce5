"""What can be watched of tuners that take part in a softmax: λ, and the prompts' own rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fxtune.errors import PlanError
from fxtune.tuners import RowsInSoftmax, attached_by


def gates(root: nn.Module, call: Callable[[], object]) -> dict[str, Tensor]:
    """λ of every tuner that shares a softmax in the unbound form, by the tuner's module path.

    Args:
        root: the tree that holds the tuners.
        call: runs the model.

    Raises:
        PlanError: there is no such tuner.
    """
    watched = {path: module for path, module in _in_softmax(root) if attached_by(module) == "attend"}
    if not watched:
        raise _nothing("gates", "no tuner takes part in a softmax in its unbound form")
    return _collected(watched, lambda module, output: output[1], call)


def prompt_rows(root: nn.Module, call: Callable[[], object]) -> dict[str, Tensor]:
    """The prompts' own rows of every attention in which they are rows of the queries, too (D of Eq. 5).

    Raises:
        PlanError: there are none.
    """
    watched = {path: module for path, module in _in_softmax(root) if isinstance(module, RowsInSoftmax)}
    with _watching(list(watched.values())):
        found = _collected(watched, lambda module, _: module.disposable, call) if watched else {}
    if not found:
        raise _nothing("prompt rows", "no tuner has prompts among the queries of an attention")
    return found


def _in_softmax(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in root.named_modules():
        if path.rpartition(".")[0].endswith("tuners") and attached_by(module) in ("attend", "attend_original"):
            yield path, module


def _collected(
    watched: Mapping[str, nn.Module], read: Callable[[Any, Any], Tensor | None], call: Callable[[], object]
) -> dict[str, Tensor]:
    """What is read of each module after each of its calls; a further call of one module has its number in the key."""
    found: dict[str, Tensor] = {}
    calls: dict[str, int] = {}

    def hook(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, _: Any, output: Any) -> None:
            value = read(module, output)
            if value is not None:
                calls[path] = calls.get(path, 0) + 1
                found[path if calls[path] == 1 else f"{path} (call {calls[path]})"] = value.detach()

        return note

    with ExitStack() as stack, torch.no_grad():
        for path, module in watched.items():
            stack.callback(module.register_forward_hook(hook(path)).remove)
        call()
    return found


@contextmanager
def _watching(modules: list[RowsInSoftmax]) -> Iterator[None]:
    try:
        for module in modules:
            module.watches = True
        yield
    finally:
        for module in modules:
            module.watches, module.disposable = False, None


def _nothing(what: str, found: str) -> PlanError:
    return PlanError(
        f"This tuned model has no {what} to watch.",
        found=found,
        fix="apply rules that put res_prefix, res_prompt or vpt at an attention, in the unbound form",
    )
