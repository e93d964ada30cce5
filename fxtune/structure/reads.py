"""What an operation reads of another: which part, and in what form."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fxtune.structure.layout import Way, places_along, written
from fxtune.structure.numbers import Take
from fxtune.structure.places import Places, lying
from fxtune.structure.structure import STATE


@dataclass(frozen=True)
class Piece:
    """What is read of a source: of a tensor of the state these numbers in this shape, of a linear map these rows."""

    shape: tuple[int, ...]
    take: Take


Part = Piece | None
"""What is read of a source; None for all."""

Read = tuple[int, Part, str]
"""The value id of a source, what is read of it, and how."""


@dataclass(frozen=True)
class Tokens:
    """Tokens x channels, whatever the layout."""

    axis: int

    def __call__(self, places: Places) -> Places:
        rank = len(places.axes)
        order = [axis for axis in range(rank) if axis != self.axis % rank]
        return places.moved([*order, self.axis % rank]).flat(0, rank - 1)


@dataclass(frozen=True)
class Matrix:
    """Out x in, of rows among out."""

    turned: bool
    rows: Take | None

    def __call__(self, places: Places) -> Places | None:
        stored = places.moved([1, 0]) if self.turned else places.flat(1, len(places.axes))
        return stored if self.rows is None else stored.at(0, self.rows)


@dataclass(frozen=True)
class Turned:
    """With the last two axes changed."""

    def __call__(self, places: Places) -> Places:
        rank = len(places.axes)
        return places.moved([*range(rank - 2), rank - 1, rank - 2])


@dataclass(frozen=True)
class Channels:
    """A number a channel, of rows among these."""

    rows: Take | None

    def __call__(self, places: Places) -> Places | None:
        return places if self.rows is None else places.at(len(places.axes) - 1, self.rows)


InForm = Tokens | Matrix | Turned | Channels
"""The form in which an operation has what it reads."""


def described(
    kind: str, shape: tuple[int, ...], channels: int | None, way: Way, form: InForm | None
) -> tuple[Part, str]:
    """Which part of a source is read, and how, as text.

    Args:
        kind: of the source: `state`, `linear`, or anything else, of which no parts are told apart.
        shape: of the source.
        channels: its channel axis, where that is not the last.
        way: the way from what is read to the source.
        form: in which the reader has it, where it is not as it lies.
    """
    places = places_along(shape, channels, way)
    if places is not None and form is not None:
        places = form(places)
    if places is None:
        return None, written(way)
    if kind == STATE:
        whole = places.shape == shape and places.take == lying(shape).take
        return None if whole else Piece(places.shape, places.take), ""
    if kind == "linear":
        rows, narrow = places.rows(shape[-1 if channels is None else channels])
        return None if rows is None else Piece((rows.size,), rows), narrow.told()
    return None, places.told(math.prod(shape))
