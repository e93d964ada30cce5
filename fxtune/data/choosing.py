"""What is taken of data: some classes, a share for each split, a few samples of each class."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from fxtune.data.samples import Data, Sample, Split
from fxtune.data.spec import Source
from fxtune.errors import DataError
from fxtune.source import nearest


def chosen(data: Data, spec: Source) -> Data:
    """What the source's options choose, in this order: classes, parts, shots, limits."""
    data = with_classes(data, spec.choose) if spec.choose else data
    data = parted(data, spec.parts, spec.seed) if spec.parts else data
    data = with_shots(data, spec.shots, spec.seed) if spec.shots else data
    return limited(data, spec.limit, spec.seed) if spec.limit else data


def with_classes(data: Data, names: Iterable[str]) -> Data:
    """The samples of these classes alone, counted in this order.

    Raises:
        DataError: the data have no such class.
    """
    names = list(names)
    for name in names:
        _check_class(name, data)
    numbers = {data.classes.index(name): number for number, name in enumerate(names)}

    def kept(split: Split) -> Split:
        samples = tuple(replace(s, label=numbers[s.label]) for s in split if s.label in numbers)
        among = None if split.among is None else tuple(sorted(numbers[i] for i in split.among if i in numbers))
        return Split(samples, among)

    return replace(data, classes=tuple(names), splits={name: kept(split) for name, split in data.splits.items()})


def parted(data: Data, parts: Mapping[str, float], seed: int) -> Data:
    """The training split divided, each class alike; splits of other names stay.

    Where `train` is not named, it is the rest: ``{"val": 0.2}`` leaves it 0.8, and ``{"test": 1}`` nothing.

    Raises:
        DataError: there is already a split of such a name.
    """
    rest = 1 - sum(parts.values())
    parts = parts if "train" in parts or rest < 1e-9 else {"train": rest, **parts}
    taken = [name for name in parts if name != "train" and name in data.splits]
    if taken:
        raise DataError(
            f"`parts` would make a split {taken[0]!r}, which {data.source} already has",
            found=f"the splits {', '.join(data.splits)}",
            fix="leave it out of `parts`",
        )
    made: dict[str, list[Sample]] = {name: [] for name in parts}
    for group in _by_class(data.split("train"), seed):
        start, reached = 0, 0.0
        for name, share in parts.items():
            reached += share
            end = round(reached * len(group))
            made[name] += group[start:end]
            start = end
    others = {name: split for name, split in data.splits.items() if name not in (*parts, "train")}
    return data.with_splits({name: _shuffled(found, seed) for name, found in made.items()} | others)


def with_shots(data: Data, shots: int, seed: int) -> Data:
    """So many training samples of each class.

    Raises:
        DataError: a class has fewer.
    """
    train = data.split("train")
    groups = _by_class(train, seed)
    counts = Counter(sample.label for sample in train)
    for label, name in enumerate(data.classes) if data.classes else [(None, "captions")]:
        if counts[label] < shots:
            raise DataError(
                f"{shots} samples of each class are asked for, and {name!r} has {counts[label]}",
                where=data.source,
                fix="ask for fewer `shots`",
            )
    few = [sample for group in groups for sample in group[:shots]]
    return data.with_splits({**data.splits, "train": _shuffled(few, seed)})


def limited(data: Data, limit: Mapping[str, int], seed: int) -> Data:
    """At most so many samples of a split, each class in the share that it has.

    Raises:
        DataError: there is no such split.
    """
    splits = dict(data.splits)
    for name, most in limit.items():
        split = data.split(name)
        if len(split) > most:
            # Each class's samples spread evenly over 0 to 1: the first ones of all have every class in its share.
            spread = [((i + 0.5) / len(group), j, s) for j, group in enumerate(_by_class(split, seed))
                      for i, s in enumerate(group)]  # fmt: skip
            spread.sort(key=lambda found: found[:2])
            splits[name] = replace(_shuffled([sample for _, _, sample in spread[:most]], seed), among=split.among)
    return data.with_splits(splits)


def with_tests(data: Data, name: str, other: Data, split: str = "test") -> Data:
    """With a split of other data to be tested on: classes are matched by name, and answers chosen among its own.

    Raises:
        DataError: it has a class that is not trained on, or is of another kind.
    """
    if name in data.splits:
        raise DataError(f"{data.source} already has a split {name!r}", fix="give the other test set another name")
    if other.kind != data.kind:
        raise DataError(f"{other.source} has {other.kind}, and {data.source} has {data.kind}")
    for known in other.classes:
        _check_class(known, data)
    numbers = [data.classes.index(known) for known in other.classes]
    found = other.split(split)
    samples = tuple(replace(s, label=None if s.label is None else numbers[s.label]) for s in found)
    present = numbers if found.among is None else [numbers[i] for i in found.among]
    among = tuple(sorted(present)) if len(present) < len(data.classes) else None
    return data.with_splits({**data.splits, name: Split(samples, among)})


def _by_class(split: Split, seed: int) -> list[list[Sample]]:
    """The samples of each class, each in an order of the seed's own."""
    groups: dict[int | None, list[Sample]] = {}
    for sample in split:
        groups.setdefault(sample.label, []).append(sample)
    shuffle = _shuffle(seed)
    return [shuffle(groups[label]) for label in sorted(groups, key=lambda label: -1 if label is None else label)]


def _shuffled(samples: Iterable[Sample], seed: int) -> Split:
    return Split(tuple(_shuffle(seed)(samples)))


def _shuffle(seed: int) -> Callable[[Iterable[Sample]], list[Sample]]:
    drawn = random.Random(seed)

    def shuffled(samples: Iterable[Sample]) -> list[Sample]:
        found = list(samples)
        drawn.shuffle(found)
        return found

    return shuffled


def _check_class(name: str, data: Data) -> None:
    if name not in data.classes:
        near = nearest(name, data.classes, 1)
        raise DataError(
            f"{data.source} has no class {name!r}",
            found=f"{len(data.classes):,} classes" + (f"; nearest: {near[0]!r}" if near else ""),
            fix=f"its classes are {', '.join(data.classes[:10])}{', ...' if len(data.classes) > 10 else ''}",
        )
