"""What a training writes down as it goes: a file of JSON lines, and TensorBoard's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fxtune.errors import CheckpointError
from fxtune.files import replacing
from fxtune.libraries import library

FILE = "metrics.jsonl"
BOARD = "tensorboard"


class Record:
    """The lines so far. A training that goes on leaves out what lies behind its state, and writes it again.

    Args:
        folder: of the training.
        step: steps that its state has done; lines of later ones are dropped.

    Raises:
        CheckpointError: the file can't be read or written.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / FILE
        try:
            kept = [line for line in _lines(self.path) if line["step"] <= step] if step else []
            with replacing(self.path) as partial:
                partial.write_text("".join(f"{json.dumps(line)}\n" for line in kept), "utf-8")
        except OSError as error:
            raise _unwritable(self.path, error) from None
        self.lines: list[dict[str, Any]] = kept
        board = library("torch.utils.tensorboard", what="Training", extra="train")
        self._board = board.SummaryWriter(str(folder / BOARD), purge_step=step or None)

    def add(self, step: int, **values: Any) -> None:
        """One line: numbers (and names) at a step, counted from 1.

        Raises:
            CheckpointError: the disk is full.
        """
        line = {"step": step, **values}
        self.lines.append(line)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(line)}\n")
        except OSError as error:
            raise _unwritable(self.path, error) from None
        under = f"{values['split']}/" if "split" in values else ""
        for name, value in values.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{under}{name}", value, step)

    def close(self) -> None:
        """Brings TensorBoard's file to the disk."""
        self._board.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of the file; a torn last one is none."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text("utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def _unwritable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        "what a training reaches can't be written down",
        found=error.strerror or str(error),
        where=str(path),
        fix="make room on the disk and give the same command again: it goes on from its last state",
    )
