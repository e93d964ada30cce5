"""Data, from where users have them: folders, tables, other libraries, and three sets that need no download.

    >>> data = load_data("digits")
    >>> print(data)
    digits: 1,078 train, 360 val, 359 test, 10 classes

Nothing is downloaded, and nothing decoded before it is wanted.
"""

from __future__ import annotations

from fxtune.data.choosing import limited, parted, with_classes, with_shots, with_tests
from fxtune.data.loading import DataLike, load_data
from fxtune.data.samples import Data, Kind, Sample, Split

__all__ = [
    "Data",
    "DataLike",
    "Kind",
    "Sample",
    "Split",
    "limited",
    "load_data",
    "parted",
    "with_classes",
    "with_shots",
    "with_tests",
]
