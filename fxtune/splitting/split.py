"""A tuned model in two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from fxtune.errors import InputError
from fxtune.splitting.cut import TUNERS, Cut
from fxtune.splitting.flat import flatten
from fxtune.splitting.halves import write_branch, write_trunk
from fxtune.splitting.kinds import whole
from fxtune.tracing import CallSignature, Region
from fxtune.view import join

Features: TypeAlias = dict[str, Tensor]
"""The values that cross from trunk to branch, by name."""


@dataclass(frozen=True, eq=False)
class Split:
    """The two halves of a graph; both hold the tuned model's own weights and modules.

    ``branch(trunk(x))`` is what the graph gives for ``x``, bit for bit, in either mode; if a value that crosses is
    overwritten in place by the trunk, a copy crosses, and kernels that go by strides and alignment may round otherwise.
    Hooks of captured modules and checkpointing of Blocks are no part of the halves; hooks of leaves (a Linear, a norm)
    are.

    Attributes:
        trunk: the model's flat input tensors -> a tuple of the values that cross.
        branch: the values that cross -> the model's flat results: the bypass and the tail.
        names: of the values that cross, in their order: the module that computes each, and its name there.
        sizes: of the values that cross: None for a dimension that may vary; empty where that is not known.
        signature: how the model is called.
    """

    trunk: Region
    branch: Region
    names: tuple[str, ...]
    sizes: tuple[tuple[int | None, ...], ...]
    signature: CallSignature

    def features(self, *args: Any, **kwargs: Any) -> Features:
        """What crosses for these inputs of the model; computed without gradients."""
        with torch.no_grad():
            return dict(zip(self.names, self.trunk(*self.signature.bind(args, kwargs)), strict=True))

    def refusal(self, features: Mapping[str, Tensor]) -> str | None:
        """Why the branch does not take these features; None if it does."""
        if features.keys() != set(self.names):
            return f"{_listed(features)}, where it reads {_listed(self.names)}"
        for name, sizes in zip(self.names, self.sizes, strict=True):
            given = tuple(features[name].shape)
            if sizes and not _fits(given, sizes):
                expected = tuple("any" if size is None else size for size in sizes)
                return f"{name} is {given}, where it reads {expected}"
        return None

    def output(self, features: Mapping[str, Tensor]) -> Any:
        """What the model returns, from what crosses.

        Raises:
            InputError: the branch does not take these features.
        """
        if (reason := self.refusal(features)) is not None:
            raise InputError(
                "these features do not belong to this tuned model",
                found=reason,
                fix="compute them with the same rules on the same model",
            )
        return self.signature.result(self.branch(*(features[name] for name in self.names)))


def split(root: Region) -> Split:
    """Parts a tuned model into its trunk and what depends on a tuner or on a weight that trains.

    Args:
        root: the root region of a tuned model; it is not changed.

    Raises:
        PlanError: the two cannot be told apart.
    """
    cut = Cut(flatten(root), root)
    branch, crossing = write_branch(cut)
    return Split(
        trunk=over(root, write_trunk(cut, crossing), "Trunk"),
        branch=over(root, branch, "Branch"),
        names=tuple(_named(crossing)),
        sizes=tuple(map(_sizes, crossing)),
        signature=root.signature,
    )


def has_bypass(root: Region) -> bool:
    """Whether a detached bypass is among the tuners of a model: then its trunk is still, whatever the mode."""
    bypass = f"{TUNERS}.bypass"
    return any(path == bypass or path.endswith(f".{bypass}") for path, _ in root.named_modules())


def over(root: nn.Module, graph: fx.Graph, title: str) -> Region:
    """A graph as a region over the very modules and weights of a module."""
    shared = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
    return Region.restore(title, graph, {name: root.__dict__[name] for name in shared})


def _named(crossing: Sequence[fx.Node]) -> list[str]:
    """Region path and name of what each was taken of; a further one of the same name has a number, too."""
    seen: Counter[str] = Counter()
    names = []
    for node in crossing:
        name = join(*whole(node).meta["origin"])
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}@{seen[name]}")
    return names


def _sizes(node: fx.Node) -> tuple[int | None, ...]:
    val = node.meta.get("val")
    return tuple(size if isinstance(size, int) else None for size in val.shape) if isinstance(val, Tensor) else ()


def _fits(given: tuple[int, ...], sizes: tuple[int | None, ...]) -> bool:
    same = len(given) == len(sizes)
    return same and all(size in (None, found) for size, found in zip(sizes, given, strict=True))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
