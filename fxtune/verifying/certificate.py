"""What `verify` found, to print, to save and to load."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, PlainSerializer

from fxtune.errors import CheckpointError, SourceError
from fxtune.files import replacing
from fxtune.verifying.comparing import Kind
from fxtune.verifying.example import Example

if TYPE_CHECKING:
    from rich.table import Table

Number = Annotated[float, PlainSerializer(lambda x: x if math.isfinite(x) else str(x), float | str, when_used="json")]
"""A float; JSON, which has no infinity, holds that as text."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Agreement(_Part):
    """How well the forms agree in one dtype, in outputs or in gradients.

    Attributes:
        dtype: of the model.
        of: outputs or gradients.
        largest: the largest relative error: in float64 of the forms against each other, else of the unbound form
            against float64.
        tensor: where that is.
        unbound: root mean square of the unbound form's errors over all examples.
        original: that of the original form; 0 in float64, where it is the truth.
        bound: what is allowed: in float64 for `largest`, else for `unbound`.
        holds: whether that is kept.
    """

    dtype: str
    of: Kind
    largest: Number
    tensor: str
    unbound: Number
    original: Number
    bound: Number
    holds: bool


class Breach(_Part):
    """The smallest failing example that was found.

    Attributes:
        example: what it is drawn from.
        dtype: of the model.
        of: outputs or gradients.
        tensor: where the error is largest.
        error: the number that breaks the bound: in float64 the largest error, else a root mean square.
        bound: what is allowed.
        shapes: of the inputs, by place.
        reproduce: the call that shows it again.
    """

    example: Example
    dtype: str
    of: Kind
    tensor: str
    error: Number
    bound: Number
    shapes: dict[str, tuple[int, ...]]
    reproduce: str

    @property
    def batch(self) -> int | None:
        """The first size of the first input that has one."""
        return next((shape[0] for shape in self.shapes.values() if shape), None)

    def __str__(self) -> str:
        shapes = ", ".join(
            f"{place} {' x '.join(map(str, shape)) or 'a number'}" for place, shape in self.shapes.items()
        )
        return "\n".join(
            [
                f"the forms disagree: {self.of} in {self.dtype}, {self.error:.1e} where {self.bound:.1e} is allowed",
                f"  worst:   {self.tensor}",
                f"  example: {self.example}",
                f"  inputs:  {shapes}",
                f"  again:   {self.reproduce}",
            ]
        )


class Certificate(_Part):
    """Whether the original and the unbound form of rules on a model compute the same, and how far they are off.

    Attributes:
        model: the model's class.
        rules: the names of the rule sets.
        tuners: a line for each rule: what it put where.
        examples: how many were computed.
        seed: from which their seeds were drawn.
        agreement: an entry for each dtype, outputs and gradients.
        versions: of fxtune, torch and Python, and the device.
        passed: whether every bound was kept.
        breach: the smallest failing example; None if everything holds.
    """

    model: str
    rules: tuple[str, ...]
    tuners: tuple[str, ...]
    examples: int
    seed: int
    agreement: tuple[Agreement, ...]
    versions: dict[str, str]
    passed: bool
    breach: Breach | None = None

    def save(self, path: str | Path) -> None:
        """Write it as JSON; folders above it are made if there are none.

        Raises:
            CheckpointError: it can't be written.
        """
        place = Path(path)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with replacing(place) as partial:
                partial.write_text(self.model_dump_json(indent=2) + "\n", "utf-8")
        except OSError as error:
            raise CheckpointError(
                "a certificate can't be written here", found=str(error), where=str(path), fix="name another file"
            ) from None

    @classmethod
    def load(cls, path: str | Path) -> Certificate:
        """Read what `save` wrote.

        Raises:
            SourceError: there is no such file, or it does not hold a certificate.
        """
        try:
            return cls.model_validate_json(Path(path).read_text("utf-8"))
        except (OSError, ValueError) as error:  # pydantic's errors are ValueErrors
            raise SourceError(
                "A certificate could not be read",
                found=str(error),
                where=str(path),
                fix="pass a file that `certificate.save` or `fxtune verify --out` has written",
            ) from None

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=120, color_system=None)
        console.print(self)
        shown: str = console.file.getvalue().rstrip()  # type: ignore[attr-defined]
        return f"{shown}\n{self.breach}" if self.breach else shown

    def __rich__(self) -> Table:
        from rich.markup import escape
        from rich.table import Table
        from rich.text import Text

        verdict = "both forms agree" if self.passed else "the forms disagree"
        caption = [
            *self.tuners,
            f"{self.examples} example{'' if self.examples == 1 else 's'} of seed {self.seed}",
            ", ".join(f"{name} {version}" for name, version in self.versions.items()),
        ]
        title = f"{self.model}, {' + '.join(self.rules)}: {verdict}"
        table = Table(title=escape(title), caption=escape("\n".join(caption)), caption_justify="left")
        for heading in ("dtype", "of"):
            table.add_column(heading)
        for heading in ("largest error", "rms unbound", "rms original", "bound"):
            table.add_column(heading, justify="right")
        table.add_column("holds")
        table.add_column("worst", overflow="fold")
        for entry in self.agreement:
            numbers = (f"{x:.1e}" for x in (entry.largest, entry.unbound, entry.original, entry.bound))
            holds = Text("yes", "green") if entry.holds else Text("NO", "bold red")
            table.add_row(entry.dtype, entry.of, *numbers, holds, escape(entry.tensor))
        return table
