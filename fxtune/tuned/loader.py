"""What `TunedModel.from_pretrained` calls. Loading plans anew, in a room that comes after this one, and is put in here
from there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from fxtune.errors import CheckpointError

if TYPE_CHECKING:
    from fxtune.tuned.model import TunedModel

Loader = TypeVar("Loader", bound=Callable[..., Any])

_loaders: list[Callable[..., TunedModel]] = []


def loads(loader: Loader) -> Loader:
    """Decorator: `from_pretrained` is this function."""
    _loaders[:] = [loader]
    return loader


def loaded(*args: Any, **options: Any) -> TunedModel:
    """What that function gives.

    Raises:
        CheckpointError: a tuned model was unpickled, and nothing else of fxtune was imported yet.
    """
    for loader in _loaders:
        return loader(*args, **options)
    raise CheckpointError("nothing was loaded", found="only a part of fxtune is imported", fix="call fxtune.load")
