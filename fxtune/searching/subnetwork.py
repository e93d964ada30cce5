"""A sub-network on its own: its rules applied, and its part of the supernet's weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from fxtune.api import apply
from fxtune.dtypes import dtype_of
from fxtune.planning import Insertion
from fxtune.saving import Made
from fxtune.searching.rules import narrowed_rules
from fxtune.searching.slots import Sizes, Slot
from fxtune.tuned import TunedModel, first_units, own_tensors
from fxtune.tuners import narrows


def subnetwork(tuned: TunedModel, made: Made, slots: Sequence[Slot], sizes: Sizes) -> TunedModel:
    """The sub-network of these sizes, with copies of the supernet's weights, in its dtype and where it is.

    Args:
        tuned: the supernet.
        made: how it was made.
        slots: its open sizes.
        sizes: what is chosen for them.
    """
    origin, wholes = narrowed_rules(made, slots, sizes)
    found = apply(
        tuned.strip(),
        origin.rule_data(),
        example_inputs=origin.example_inputs(),
        head=origin.head,
        num_classes=origin.num_classes,
        seed=0,
        dtype=origin.torch_dtype,
        batchnorm=origin.batchnorm,
        form=origin.form,
        optimize=origin.optimize,
    )
    chosen = {i.path: (slot, size) for slot, size in zip(slots, sizes, strict=True) for i in slot.insertions}
    weights = _others(tuned, made)
    for whole, part in _pairs(wholes, found):
        mine = dict(tuned.get_submodule(whole.path).state_dict())
        if whole.path in chosen:
            mine |= _first(tuned, whole, *chosen[whole.path])
        weights |= {f"{part.path}.{name}": tensor for name, tensor in mine.items()}
    _follow(found, tuned)
    found.load_state_dict(weights, strict=False)
    return found


def _follow(found: TunedModel, tuned: TunedModel) -> None:
    """Goes where the supernet has been moved since it was made, and takes the dtype to which it has been cast."""
    then, now = tuned.strip(), tuned._fxtune.twin
    device = next(now.parameters()).device
    if device != next(then.parameters()).device:
        found.to(device)
    if dtype_of(now) != dtype_of(then):
        found.to(dtype_of(now))


def _others(tuned: TunedModel, made: Made) -> dict[str, Tensor]:
    """What the supernet has of its own besides the tuners of its rules: it has the same names in both."""
    tuners = tuple(f"{i.path}." for i in made.insertions)
    own = own_tensors(tuned, tuned.strip())
    return {name: tensor for name, tensor in own.items() if not name.startswith(tuners)}


def _pairs(wholes: Sequence[Sequence[Insertion]], found: TunedModel) -> Iterator[tuple[Insertion, Insertion]]:
    """Each of the sub-network's tuners with the one that it is a part of: both come in the order of their sites."""
    made = found._fxtune.made
    assert made is not None
    for number, whole in enumerate(wholes):
        yield from zip(whole, [i for i in made.insertions if i.rule == number], strict=True)


def _first(tuned: TunedModel, whole: Insertion, slot: Slot, size: int) -> dict[str, Tensor]:
    return first_units(tuned.get_submodule(whole.path), narrows(whole.tuner)[slot.setting], size)
