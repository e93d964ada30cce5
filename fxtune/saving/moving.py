"""A checkpoint's weights on a model that computes the same under other names, its projections fused or split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxtune.errors import CheckpointError
from fxtune.planning import Insertion, Patch
from fxtune.saving.backbone import numbers_of
from fxtune.saving.standing import Standing, standings_of
from fxtune.structure import STATE, Structure, Structured, Take
from fxtune.tuners import can_part, joined, parted

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Elsewhere:
    """A model that computes what a checkpoint's backbone does.

    Attributes:
        path: of the checkpoint, for errors.
        there: the structure of the checkpoint's backbone.
        tuners: where its tuners stand there.
        here: the model's.
        nodes: node there -> node here.
    """

    path: str
    there: Structure
    tuners: Mapping[str, Standing]
    here: Structured
    nodes: Mapping[int, int]

    def standing(self, path: str) -> Standing:
        """Where a tuner of the checkpoint stands here."""
        old = self.tuners[path]
        return Standing(rule=old.rule, nodes=tuple(self.nodes[node] for node in old.nodes))

    def refused(self, found: str, fix: str) -> CheckpointError:
        """What to raise where something of the checkpoint has no place here."""
        return CheckpointError(
            "these tuners cannot be moved to this model, which computes the same in other words",
            found=found,
            where=self.path,
            fix=fix,
        )


@dataclass(frozen=True)
class Moved:
    """The tuners' weights for one patch of the model.

    Attributes:
        weights: state_dict name here -> weight.
        settings: number of a rule -> the settings with which its tuners are so large.
    """

    weights: Weights
    settings: Mapping[int, Mapping[str, Any]]


def moved_state(stored: Mapping[str, Tensor], known: Mapping[str, Tensor], to: Elsewhere) -> Weights:
    """Weights of the model's own, which trained or moved, under their names here.

    What takes no part in what the model returns is left out.

    Args:
        stored: the checkpoint's, under their names there.
        known: the model's state_dict, for shapes.
        to: the model.

    Raises:
        CheckpointError: a weight here is only in part what trained there.
    """
    pieces: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    for i, node in enumerate(to.there.nodes):
        if node.op == STATE and node.name in stored:
            numbers = numbers_of(stored[node.name], node)
            if numbers is None:
                raise to.refused(f"`{node.name}` is not of the shape that its own header says", "copy the file again")
            counterpart = to.nodes[i]
            pieces[to.here.structure.nodes[counterpart].name].append((counterpart, numbers))
    moved = {}
    for name, found in pieces.items():
        parts = {i for i, node in enumerate(to.here.structure.nodes) if node.op == STATE and node.name == name}
        if parts != {counterpart for counterpart, _ in found}:
            raise to.refused(
                f"`{name}` is one tensor here, and only a part of it trained there",
                "load them on a model whose weights lie apart as they did there",
            )
        moved[name] = _assembled(known[name], found, to.here.structure)
    return moved


def moved_tuners(stored: Mapping[str, Tensor], patch: Patch, to: Elsewhere) -> Moved:
    """The tuners' weights, each where the same operation is here.

    Tuners of a fused projection become those of its parts, and those of parts one.

    Args:
        stored: the checkpoint's, under their names there.
        patch: what the rules make of the model.
        to: the model.

    Raises:
        CheckpointError: a tuner has no place here, or its place no tuner; or it cannot be taken apart.
    """
    for compact in (True, False):
        weights, settings, used = _Pairing(stored, patch, to, compact=compact).moved()
        odd = [each for each in settings.items() if len(each[1]) > 1]
        if not odd:
            break
    else:
        number, (first, second, *_) = odd[0]
        raise to.refused(
            f"rule {number} would need tuners of other sizes at some of its sites than at others: {first} and {second}",
            "load them on a model whose projections are fused or split as they were there",
        )
    left = [(path, node) for path in to.tuners for node in to.standing(path).nodes if (path, node) not in used]
    if left:
        path, node = left[0]
        raise to.refused(
            f"the rules put nothing at `{to.here.structure.nodes[node].name}`, where `{path}` stands",
            "look at the rules' conditions (`where:`, `on:`): they are in the checkpoint's folder",
        )
    return Moved(weights, {number: each[0] for number, each in settings.items()})


class _Pairing:
    """Which tuners there become which here."""

    def __init__(self, stored: Mapping[str, Tensor], patch: Patch, to: Elsewhere, *, compact: bool) -> None:
        self.stored, self.to, self.compact = stored, to, compact
        self.insertions = {insertion.path: insertion for insertion in patch.insertions}
        self.here = standings_of(patch, to.here)
        self.at: dict[tuple[int | None, int], list[str]] = defaultdict(list)
        for path in to.tuners:
            standing = to.standing(path)
            if not standing.nodes:
                raise self._unseen(path)
            for node in standing.nodes:
                self.at[standing.rule, node].append(path)
        self.back = {new: old for old, new in to.nodes.items()}

    def moved(self) -> tuple[Weights, dict[int, list[Mapping[str, Any]]], set[tuple[str, int]]]:
        """Weights here, the settings that each rule's tuners need, and which tuners were used, at which nodes here."""
        weights: Weights = {}
        settings: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        used: set[tuple[str, int]] = set()
        for path, standing in self.here.items():
            stood = [(self._stood(path, standing, node), node) for node in standing.nodes]
            if not stood:
                raise self._unseen(path)
            sources = list(dict.fromkeys(old for old, _ in stood))
            insertion = self.insertions.get(path)
            if len(sources) == 1 and self._alike(sources[0], standing):
                found: Mapping[str, Tensor] = self._weights(sources[0])
                needed: Mapping[str, Any] = {} if insertion is None else insertion.settings
            elif insertion is None:
                raise self.to.refused(
                    f"the bypass `{path}` runs along other units here", "look at `bypass:` in the checkpoint's rules"
                )
            else:
                found, needed = self._rejoined(insertion, standing, sources)
            weights |= {f"{path}.{name}": weight for name, weight in found.items()}
            used |= set(stood)
            if standing.rule is not None and needed not in settings[standing.rule]:
                settings[standing.rule].append(needed)
        return weights, settings, used

    def _unseen(self, path: str) -> CheckpointError:
        return self.to.refused(
            f"`{path}` stands at an operation that nothing returned is computed from", "leave it out of the rules"
        )

    def _stood(self, path: str, standing: Standing, node: int) -> str:
        """The tuner that stood there at what is this node here."""
        found = self.at.get((standing.rule, node), [])
        if len(found) != 1:
            stood = "nothing" if not found else f"{len(found)} tuners"
            raise self.to.refused(
                f"the rules put `{path}` here, and at that operation {stood} of that rule stood there",
                "look at the rules' conditions (`where:`): they are in the checkpoint's folder",
            )
        return found[0]

    def _alike(self, path: str, standing: Standing) -> bool:
        """Whether a tuner there stands at the very same operations, of the same channels."""
        old = self.to.standing(path)
        there, here = self.to.there.nodes, self.to.here.structure.nodes
        return sorted(old.nodes) == sorted(standing.nodes) and (
            len(old.nodes) == 1 or all(there[self.back[node]].take == here[node].take for node in old.nodes)
        )

    def _weights(self, path: str) -> Weights:
        return {
            name.removeprefix(f"{path}."): weight for name, weight in self.stored.items() if name.startswith(f"{path}.")
        }

    def _rejoined(
        self, insertion: Insertion, standing: Standing, sources: Sequence[str]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """A tuner here from tuners there that stand at parts of its operation, or at one of which its own is a part."""
        if insertion.site.operation is None or not can_part(insertion.tuner):
            raise self.to.refused(
                f"{insertion.tuner} at `{sources[0]}` there and at `{insertion.site.path}` here: projections that are "
                f"fused in one of the two are split in the other, and {insertion.tuner} cannot be taken apart",
                "load them on a model whose projections are fused or split as they were there",
            )
        try:
            parts = [self._part(insertion.tuner, standing, node) for node in standing.nodes]
            if len(parts) == 1:
                return parts[0], insertion.settings
            here = self.to.here.structure.nodes
            rows = [_rows(here[node].take, here[node].shape[-1]) for node in standing.nodes]
            return joined(insertion.tuner, parts, rows, insertion.settings, compact=self.compact)
        except (KeyError, IndexError, RuntimeError) as error:
            raise self.to.refused(
                f"the weights of `{sources[0]}` are not those of its operation: {error}", "copy the file again"
            ) from None

    def _part(self, tuner: str, standing: Standing, node: int) -> Mapping[str, Tensor]:
        """The weights of what stood at one part of an operation."""
        (path,) = self.at[standing.rule, node]
        weights, fused = self._weights(path), self.to.tuners[path].nodes
        if len(fused) == 1:
            return weights
        old = self.to.there.nodes[self.back[node]]
        rows, channels = _rows(old.take, old.shape[-1]), sum(self.to.there.nodes[each].shape[-1] for each in fused)
        if len(rows) != old.shape[-1] or not 0 <= int(rows.min()) <= int(rows.max()) < channels:
            raise IndexError("other channels")
        return parted(tuner, weights, rows)


def _rows(take: Take | None, width: int) -> Tensor:
    """The channels of a linear map that one of its parts has."""
    if take is None:
        return torch.arange(width, device="cpu")
    rows: Tensor = take.places() if take.size == width else torch.empty(0, dtype=torch.int64, device="cpu")
    return rows


def _assembled(like: Tensor, pieces: Sequence[tuple[int, Tensor]], structure: Structure) -> Tensor:
    """A tensor of the model from the numbers of each of its parts."""
    whole = like.detach().cpu().to(pieces[0][1].dtype).flatten().clone()
    for i, numbers in pieces:
        take = structure.nodes[i].take
        if take is None:
            return numbers.clone()
        whole[take.places()] = numbers.flatten()
    return whole.view(like.shape)
