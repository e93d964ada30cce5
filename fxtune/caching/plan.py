"""What a cache is made of: written before its first shard, and compared with what it is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxtune.caching.files import PLAN, read_json, write_json
from fxtune.caching.layout import Array, Structure
from fxtune.errors import CacheError

FORMAT = 2


@dataclass(frozen=True)
class Plan:
    """What a cache is made of.

    Attributes:
        features: the values that cross from trunk to branch.
        rest: the arrays of what else the batches hold.
        structure: how the rest is put together.
        weights: the trunk's weights: by name, what is in each.
        trunk: what the trunk computes.
        inputs: what the model was given for the first samples.
        beside: what there was beside the inputs for the first samples: labels; None where that varies.
        samples: how many there are, None if the dataloader can't tell.
        views: how often each was read.
    """

    features: Mapping[str, Array]
    rest: Mapping[str, Array]
    structure: Structure
    weights: Mapping[str, str]
    trunk: str
    inputs: Mapping[str, Any]
    beside: list[str] | None
    samples: int | None
    views: int

    @property
    def arrays(self) -> dict[str, Array]:
        """All of a sample that lies in tensors."""
        return {**self.features, **self.rest}

    @property
    def bytes(self) -> int:
        """Of one view of a sample, on disk."""
        return sum(array.bytes for array in self.arrays.values())

    def write(self, folder: Path) -> None:
        """Writes the plan into a cache's folder."""
        write_json(folder, PLAN, self.to_json())

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "features": {name: array.to_json() for name, array in self.features.items()},
            "rest": {name: array.to_json() for name, array in self.rest.items()},
            "structure": self.structure,
            "weights": dict(self.weights),
            "trunk": self.trunk,
            "inputs": dict(self.inputs),
            "beside": self.beside,
            "samples": self.samples,
            "views": self.views,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The plan that was written; KeyError, TypeError or ValueError if it is none."""
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']}")
        return cls(
            features={name: Array.from_json(array) for name, array in data["features"].items()},
            rest={name: Array.from_json(array) for name, array in data["rest"].items()},
            structure=data["structure"],
            weights=data["weights"],
            trunk=data["trunk"],
            inputs=data["inputs"],
            beside=data["beside"],
            samples=data["samples"],
            views=data["views"],
        )


def read_plan(folder: Path) -> Plan | None:
    """The plan in a folder; None if there is none.

    Raises:
        CacheError: there are files, and no plan among them that can be read.
    """
    if folder.exists() and not folder.is_dir():
        raise CacheError("a feature cache is a folder", found="a file", where=str(folder), fix="name another place")
    data = read_json(folder, PLAN)
    if data is None and not (folder.is_dir() and any(folder.iterdir())):
        return None
    try:
        return Plan.from_json(data or {})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CacheError(
            "this folder holds something else than a feature cache",
            found=f"{PLAN} is missing or cannot be read ({type(error).__name__}: {error})",
            where=str(folder),
            fix="name an empty folder, or delete this one",
        ) from None


def check_same(there: Plan, wanted: Plan, folder: Path) -> None:
    """Refuses a cache that was made of something else.

    Raises:
        CacheError: what differs: the rule, the backbone, the preprocessing, or how it is stored.
    """
    for what, found in _differences(there, wanted):
        raise CacheError(
            f"this feature cache was made with another {what}",
            found=found,
            where=str(folder),
            fix="name another folder, or delete this one to make the cache anew",
        )


def _differences(there: Plan, wanted: Plan) -> Iterator[tuple[str, str]]:
    """What differs, and how: what causes the others first."""
    changed = [name for name in there.weights if wanted.weights.get(name, there.weights[name]) != there.weights[name]]
    if there.weights.keys().isdisjoint(wanted.weights):
        yield "backbone", f"it has weights such as `{next(iter(there.weights), '')}`, which this one does not"
    if changed:
        yield "backbone", f"{len(changed)} of its weights differ, the first is `{changed[0]}`"
    if list(there.features) != list(wanted.features):
        yield "rule", f"it holds {', '.join(there.features)}; the bypass reads {', '.join(wanted.features)}"
    if there.weights.keys() != wanted.weights.keys() or there.trunk != wanted.trunk:
        yield "backbone", "its weights are the same, but they are computed with in another way"
    if there.inputs["form"] != wanted.inputs["form"] or _values_differ(there.inputs, wanted.inputs):
        yield "preprocessing or other data", "the model's inputs for the first samples differ"
    if there.samples != wanted.samples:
        yield "number of samples", f"{there.samples}, where the dataloader has {wanted.samples}"
    if there.views != wanted.views:
        yield "number of views", f"{there.views}, not {wanted.views}"
    if there.features != wanted.features:
        kinds = {name: array for name, array in there.features.items() if array != wanted.features[name]}
        name, array = next(iter(kinds.items()))
        yield "dtype, or size of features", f"{name} is {array.to_json()}, not {wanted.features[name].to_json()}"
    if there.rest != wanted.rest or there.structure != json.loads(json.dumps(wanted.structure)):
        yield "kind of labels", f"{there.structure}, not {wanted.structure}"
    if None not in (there.beside, wanted.beside) and there.beside != wanted.beside:
        yield "set of labels", "what the batches hold beside the inputs differs for the first samples"


def _values_differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return None not in (one["values"], other["values"]) and one["values"] != other["values"]
