"""What trains beside LoRA, in the words that PEFT has for it: whole modules, and biases."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from fxtune.errors import CheckpointError

Biases = Literal["none", "lora_only", "all"]


@dataclass(frozen=True)
class Kept:
    """PEFT's words.

    Attributes:
        bias: which biases train by themselves.
        modules: paths of the modules that are kept whole.
    """

    bias: Biases
    modules: tuple[str, ...]


def kept_beside(own: Collection[str], known: Collection[str], modules: Collection[str], maps: Collection[str]) -> Kept:
    """Finds the words for a set of weights.

    Args:
        own: state_dict names of the weights that are stored beside LoRA.
        known: all state_dict names of the model.
        modules: all module paths of the model.
        maps: the modules with LoRA.

    Raises:
        CheckpointError: PEFT has none: a part of a module trains, say; which.
    """
    biases: dict[Biases, set[str]] = {
        "none": set(),
        "lora_only": {f"{path}.bias" for path in maps} & set(known),
        "all": {name for name in known if name.rpartition(".")[2] == "bias"},
    }
    problems = []
    for bias, covered in biases.items():
        if not covered <= set(own):
            continue
        whole = dict.fromkeys(name.rpartition(".")[0] for name in own if name not in covered)
        problem = next(filter(None, (_problem(path, own, known, modules, maps) for path in whole)), None)
        if problem is None:
            return Kept(bias, tuple(whole))
        problems.append(problem)
    raise CheckpointError(
        "PEFT's form has no words for what trains here",
        found=problems[0],
        fix="save it with format='fxtune', or let only tuners, whole modules such as the head, or all biases train",
    )


def _problem(
    path: str, own: Collection[str], known: Collection[str], modules: Collection[str], maps: Collection[str]
) -> str | None:
    """Why a module can't be one that PEFT keeps whole."""
    if not path:
        name = next(name for name in own if "." not in name)
        return f"`{name}` trains, which lies in no module"
    lora = next((other for other in maps if other == path or other.startswith(f"{path}.")), None)
    if lora is not None:
        name = next(name for name in own if name.startswith(f"{path}."))
        return f"`{name}` trains, and there is LoRA at `{lora}`"
    frozen = next((name for name in known if name.startswith(f"{path}.") and name not in own), None)
    if frozen is not None:
        name = next(name for name in own if name.startswith(f"{path}."))
        return f"`{name}` trains, and `{frozen}` of the same module does not"
    # PEFT takes every module whose path ends so, dot before it or not.
    other = next((other for other in modules if other != path and other.endswith(path)), None)
    return None if other is None else f"`{path}` trains, and PEFT would take `{other}` for it, too, which ends alike"
