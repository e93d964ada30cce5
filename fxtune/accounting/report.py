"""What `memory` found, to print and to take on as data."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


_HEADINGS = ("weights", "that\ntrain", "gradients", "optimizer\nstate", "saved for\nbackward", "peak")


@dataclass(frozen=True)
class Usage:
    """What one method of training takes, in bytes; storages count once and whole.

    Attributes:
        method: ``full``, ``linear``, or the names of the rule sets.
        weights: all parameters and buffers, trained or not.
        trained: how many numbers train (not bytes).
        gradients: of all weights that train, after a backward.
        optimizer_state: what the optimizer keeps from step to step.
        saved_for_backward: what came to be in the forward and lives on after it only because the backward needs it:
            activations, masks, statistics, casts of weights. Weights, buffers and inputs, which live anyway, don't
            count, nor do the outputs unless the backward needs them, single Python numbers, and the random
            generator's state that checkpointing keeps.
        peak: the most that lies in memory at once during training steps, inputs and temporaries included.
    """

    method: str
    weights: int
    trained: int
    gradients: int
    optimizer_state: int
    saved_for_backward: int
    peak: int


@dataclass(frozen=True)
class MemoryReport:
    """What training a model takes by several methods. `print` it, or hand it to a rich console.

    Attributes:
        model: the model's class.
        batch: samples a step; None where no input has a batch.
        device: on which it trains.
        optimizer: with which.
        autocast: the dtype of torch.autocast in the forward; None without.
        checkpointing: whether the Blocks are computed again in the backward instead of kept.
        usages: one a method, in the order in which they were asked for.
        left_out: by method, why it does not work on this model.
    """

    model: str
    batch: int | None
    device: str
    optimizer: str
    autocast: str | None
    checkpointing: bool
    usages: tuple[Usage, ...]
    left_out: dict[str, str]

    def __getitem__(self, method: str) -> Usage:
        """The usage of one method, by its name."""
        return {usage.method: usage for usage in self.usages}[method]

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=120, color_system=None)
        console.print(self)
        shown: str = console.file.getvalue().rstrip()  # type: ignore[attr-defined]
        return shown

    def __rich__(self) -> Table:
        from rich.box import SIMPLE
        from rich.markup import escape
        from rich.table import Table

        caption = [f"{method} left out: {reason}" for method, reason in self.left_out.items()]
        table = Table(title=escape(self._title()), caption=escape("\n".join(caption)), caption_justify="left")
        table.box, table.pad_edge = SIMPLE, False
        table.add_column("method", overflow="fold")
        for heading in _HEADINGS:
            table.add_column(heading, justify="right", no_wrap=True)
        for usage in self.usages:
            kept = (usage.gradients, usage.optimizer_state, usage.saved_for_backward, usage.peak)
            table.add_row(escape(usage.method), units(usage.weights), f"{usage.trained:,}", *map(units, kept))
        return table

    def _title(self) -> str:
        parts = [
            f"{self.model}: training" + (f" with batch {self.batch}" if self.batch is not None else ""),
            f"{self.optimizer} on {self.device}",
            f"autocast to {self.autocast}" if self.autocast else "",
            "Blocks checkpointed" if self.checkpointing else "",
        ]
        return ", ".join(filter(None, parts))


def units(size: int) -> str:
    """A number of bytes as people read it: ``512 B``, ``1.5 KiB``, ``235 MiB``."""
    if size < 1000:
        return f"{size} B"
    value, larger = size / 1024, iter(("KiB", "MiB", "GiB", "TiB"))
    unit = next(larger)
    while value >= 999.5 and unit != "TiB":
        value, unit = value / 1024, next(larger)
    digits = 0 if value >= 99.5 else 1 if value >= 9.95 else 2
    return f"{value:,.{digits}f} {unit}"
