"""Small random models of every family, as the model cards describe them (``small`` in ``models/*.yaml``)."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from fxtune import cards, source
from fxtune.cards import Small
from fxtune.errors import FxtuneError

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments and keywords of a call, as `fxtune.apply` takes them for ``example_inputs``."""


@dataclass(frozen=True, repr=False)
class SmallModel:
    """One model of a family; small plain data, printed by what it has beyond the family's usual member.

    Attributes:
        card: the model card that describes it.
        number: which of the card's small members it is.
        drawn: its draws, where they are not the first choice.
        batch: samples in its inputs.
        seed: of its weights, its statistics and its inputs.
    """

    card: str
    number: int = 0
    drawn: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 2
    seed: int = 0

    def __repr__(self) -> str:
        usual = SmallModel(self.card)
        given = [f for f in fields(self) if getattr(self, f.name) != getattr(usual, f.name)]
        return f"SmallModel({', '.join([repr(self.card), *(f'{f.name}={getattr(self, f.name)!r}' for f in given)])})"

    def build(self) -> tuple[nn.Module, Inputs]:
        """The model in eval mode, and inputs for it.

        No weight and no statistic is a plain zero or one any more, so that a lost bias or scale shows.

        Raises:
            FxtuneError: the model's library is not installed.
        """
        small = next(card for card in cards.shipped() if card.card == self.card).small[self.number]
        model = build(small, self.drawn, seed=self.seed)
        _roughen(model, torch.Generator().manual_seed(self.seed))
        return model, cards.example_inputs(model, seed=self.seed, batch=self.batch)


def small_models(family: str | Sequence[str] | None = None) -> st.SearchStrategy[SmallModel]:
    """A strategy for small models of the real libraries.

    Args:
        family: a model card (``"vit.timm"``), or the start of its name (``"vit"``: of timm and of transformers), or
            several of them; by default every family of which there is more than one member, and whose library is
            installed.

    Raises:
        FxtuneError: there is no such family, or its library is not installed.
    """
    return _drawn(_members([family] if isinstance(family, str) else family))


def families_of(names: Sequence[str] | None = None) -> list[str]:
    """The model cards of the families that `small_models` would draw from.

    Raises:
        FxtuneError: there is no such family, or its library is not installed.
    """
    return list(dict.fromkeys(card for card, *_ in _members(names)))


def _members(wanted: Sequence[str] | None) -> list[tuple[str, int, Small]]:
    known = [(card.card, number, small) for card in cards.shipped() for number, small in enumerate(card.small)]
    if wanted is None:
        return [(card, number, small) for card, number, small in known if small.draws and _installed(small)]
    return [found for name in wanted for found in _of_family(name, known)]


def _of_family(name: str, known: Sequence[tuple[str, int, Small]]) -> list[tuple[str, int, Small]]:
    found = [entry for entry in known if entry[0] == name or entry[0].startswith(f"{name}.")]
    usable = [entry for entry in found if _installed(entry[2])]
    if usable:
        return [entry for entry in usable if entry[2].draws] or usable
    names = dict.fromkeys(card for card, *_ in known)
    raise FxtuneError(
        f"There are no small models of {name!r}",
        found=f"not installed: {found[0][2].call}" if found else f"nearest: {', '.join(source.nearest(name, names))}",
        fix="install the library" if found else f"name one of {', '.join(names)}",
    )


@st.composite
def _drawn(draw: st.DrawFn, members: Sequence[tuple[str, int, Small]]) -> SmallModel:
    card, number, small = draw(st.sampled_from(members))
    chosen = {name: draw(st.integers(0, len(choices) - 1)) for name, choices in small.draws.items()}
    unusual = {name: small.draws[name][i] for name, i in chosen.items() if i}
    return SmallModel(card, number, unusual, draw(st.integers(2, 4)), draw(st.integers(0, 2**16)))


def build(small: Small, drawn: Mapping[str, Any] | None = None, *, seed: int = 0) -> nn.Module:
    """The model that `small` describes, in eval mode, as its library builds it; the weights drawn from `seed`."""
    chosen = {**{name: choices[0] for name, choices in small.draws.items()}, **(drawn or {})}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = _value({"call": small.call, "arguments": small.arguments}, chosen)
    assert isinstance(model, nn.Module)
    return model.eval()


def _value(described: Any, chosen: Mapping[str, Any]) -> Any:
    """What an argument stands for."""
    match described:
        case {"call": path}:
            module, _, name = path.rpartition(".")
            arguments = {key: _value(value, chosen) for key, value in described.get("arguments", {}).items()}
            return getattr(importlib.import_module(module), name)(**arguments)
        case {"draw": name}:
            return chosen[name]
        case {"product": factors}:
            return math.prod(chosen[factor] if isinstance(factor, str) else factor for factor in factors)
        case list():
            return [_value(value, chosen) for value in described]
    return described


def _installed(small: Small) -> bool:
    return importlib.util.find_spec(small.call.partition(".")[0]) is not None


@torch.no_grad()
def _roughen(model: nn.Module, generator: torch.Generator) -> None:
    """Noise on every weight and statistic that is the same number throughout, as libraries initialise biases, norms and
    layer scales. It is positive on statistics, of which some are variances."""

    def noise(tensor: Tensor) -> Tensor:
        return torch.rand(tensor.shape, generator=generator).to(tensor) * 0.2

    for parameter in model.parameters():
        if _constant(parameter):
            parameter.add_(noise(parameter) - 0.1)
    for buffer in model.buffers():
        if _constant(buffer):
            buffer.add_(noise(buffer))


def _constant(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())
