"""From a name and settings to a tuner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxtune import source
from fxtune.errors import RuleError, SourceError
from fxtune.source import Document, Loc
from fxtune.tuners.attaching import attached
from fxtune.tuners.placement import Placement
from fxtune.tuners.registry import Entry, find


def settings(name: str) -> dict[str, tuple[Any, Any]]:
    """The settings of the tuner `name`: name -> (annotation, default).

    Raises:
        RuleError: no tuner is called so; the closest names.
    """
    return dict(find(name).settings)


def refusal(name: str, kind: str) -> str | None:
    """Why the tuner `name` does not go on sites of this kind; None when it does."""
    return find(name).refuses.get(kind)


def build(
    name: str,
    settings: Mapping[str, Any],
    place: Placement,
    *,
    method: str = "forward",
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A new tuner for `place`.

    Weights are drawn in the default dtype on the CPU and then moved, so a seed gives the same ones on every device.
    With `seed` they come from a generator of their own and the global one stays as it was. On the meta device nothing
    is drawn.

    Args:
        name: its registered name.
        settings: its settings; the others have their defaults.
        place: what it is told of its place.
        method: what a call of it runs.
        seed: for its weights.
        dtype: of its weights.
        device: of its weights.

    Raises:
        RuleError: no tuner is called so, it refuses this kind of site, or a setting is unknown or has a bad value.
    """
    entry = find(name)
    values = checked(entry, source.from_data(settings, name))
    if place.kind in entry.refuses:
        raise RuleError(f"The tuner {name!r} does not go on {place.kind!r}", found=entry.refuses[place.kind])
    return attached(drawn(lambda: entry.cls(place, **values), seed=seed, dtype=dtype, device=device), method)


def drawn(
    make: Callable[[], nn.Module],
    *,
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A module with new weights, drawn as `build` says; `make` makes it."""
    target = torch.device(device)
    with _drawing(target, seed):
        module = make()
    return module.to(device=target, dtype=dtype)


@contextmanager
def _drawing(target: torch.device, seed: int | None) -> Iterator[None]:
    """Where new weights are made, and with which numbers."""
    if target.type == "meta":
        with target, _Undrawn():  # type: ignore[no-untyped-call]
            yield
        return
    with torch.random.fork_rng(devices=[], enabled=seed is not None), torch.device("cpu"):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        yield


class _Undrawn(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Leaves a tensor as it is where numbers are drawn into it.

    The meta device has no numbers, but torch goes a long way to draw them there: most of the time that a tuner takes.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable and torch.Tag.nondeterministic_seeded in func.tags:
            return args[0]
        return func(*args, **(kwargs or {}))


def checked(entry: Entry, document: Document, at: Loc = ()) -> dict[str, Any]:
    """All settings of the tuner: those that stand at `at` in `document`, and the defaults of the others.

    Raises:
        RuleError: a setting is unknown (the nearest one) or has a bad value (what was expected).
    """
    try:
        return document.validate(entry.model, at=at).model_dump(by_alias=True)
    except SourceError as error:
        asked = f"The tuner {entry.name!r} does not take these settings"
        raise RuleError(asked, found=error.found, where=error.where) from None
