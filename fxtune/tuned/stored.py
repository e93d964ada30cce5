"""Which tensors of a tuned model are stored on disk, and how they are put back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from fxtune.errors import CheckpointError
from fxtune.saving import Origin, Stored
from fxtune.source import nearest
from fxtune.splitting import TUNERS
from fxtune.tuned.ownership import place, tensors
from fxtune.wrapped import is_wrapped, same_numbers

if TYPE_CHECKING:
    from fxtune.tuned.model import TunedModel


def origin_of(tuned: TunedModel) -> Origin | None:
    """By what rules and arguments it was made; None where `fxtune.apply` did not make it."""
    made = tuned._fxtune.made
    return None if made is None else made.origin


def own_tensors(tuned: nn.Module, original: nn.Module) -> dict[str, Tensor]:
    """What is not the original's: tuners, what trains, and what else has other numbers than there (statistics that
    moved, a new head). Tied weights come once, under the first of their names.

    Raises:
        CheckpointError: one of them is quantised.
    """
    theirs = dict(tensors(original))
    own: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in _state(tuned).items():
        key = place(tensor) if tensor.numel() else name
        own_one = is_tuners(name) or tensor.requires_grad or _moved(tensor, theirs.get(name))
        if own_one and is_wrapped(tensor):
            raise CheckpointError(
                "this tuned model cannot be saved",
                found=f"`{name}`, a {type(tensor).__name__}, has other numbers than the original's",
                fix="put these into the model and tune it anew, or store the state_dict with torch.save",
            )
        if key not in seen and own_one:
            own[name] = tensor
            seen.add(key)
    return own


def put(tuned: nn.Module, original: nn.Module, checkpoint: Stored) -> None:
    """Puts a checkpoint's weights into a new tuned model of the original, all or none.

    Raises:
        CheckpointError: the model lacks one of them, or they lack one of the model's, or one is of another shape, is
            not finite, or of another kind.
    """
    state = _state(tuned)
    found = _misfit(state, dict(tensors(original)), checkpoint.shapes)
    if found is not None:
        raise checkpoint.contradiction(found)
    loaded = checkpoint.tensors()
    for name, tensor in loaded.items():
        if tensor.dtype.is_floating_point != state[name].dtype.is_floating_point:
            raise checkpoint.contradiction(f"`{name}` is of {tensor.dtype}, and {state[name].dtype} here")
    tuned.load_state_dict(loaded, strict=False)


def _misfit(
    state: Mapping[str, Tensor], theirs: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> str | None:
    for name, shape in shapes.items():
        if name not in state:
            near = nearest(name, state, 1)
            return f"`{name}`, which this model does not have" + (f" (nearest: `{near[0]}`)" if near else "")
        if tuple(state[name].shape) != shape:
            return f"`{name}` of shape {shape}, which is {tuple(state[name].shape)} here"
    there = {place(state[name]) for name in shapes}
    missing = [
        name
        for name, tensor in state.items()
        if tensor.numel() and place(tensor) not in there and (is_tuners(name) or _moved(tensor, theirs.get(name)))
    ]  # of the original's own weights those were stored that trained
    return f"nothing for `{missing[0]}` and {len(missing) - 1} more" if missing else None


def _state(tuned: nn.Module) -> dict[str, Tensor]:
    state = tuned.state_dict(keep_vars=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def is_tuners(name: str) -> bool:
    """Whether a state_dict name is a tuner's."""
    return TUNERS in name.split(".")


def _moved(tensor: Tensor, theirs: Tensor | None) -> bool:
    if theirs is None or theirs.shape != tensor.shape:
        return True
    return place(tensor) != place(theirs) and not same_numbers(tensor, theirs)
