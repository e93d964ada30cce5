"""What a search has done so far, in a file that a killed search goes on from.

JSON lines: what is searched and how, then a line for each candidate, written when it is scored. There is no other
state: the candidates follow from the seed and the scores, so they are made again from the first, and those that the
file has are not scored again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fxtune.errors import CheckpointError
from fxtune.files import replacing
from fxtune.searching.evolution import Candidate

FILE = "history.jsonl"


class History:
    """The candidates that were scored, in order.

    Args:
        folder: where the file lies; None keeps them in memory alone.
        search: what is searched and how, as plain data. A file of another search is refused.

    Raises:
        CheckpointError: the file is another search's, or damaged, or can't be written.
    """

    def __init__(self, folder: Path | None, search: Mapping[str, Any]) -> None:
        self.path = None if folder is None else folder / FILE
        self.candidates: list[Candidate] = []
        if self.path is not None:
            self.candidates = _begin(self.path, json.loads(json.dumps(search)))

    def known(self, number: int, candidate: Candidate) -> Candidate | None:
        """The candidate with its score, where it is the one that was scored at this point; None behind the last.

        Raises:
            CheckpointError: another one was.
        """
        if number >= len(self.candidates):
            return None
        found = self.candidates[number]
        if found.model_copy(update={"score": None}) != candidate:
            raise CheckpointError(
                "this search cannot be gone on with",
                found=f"candidate {number} was {list(found.sizes)}, and would now be {list(candidate.sizes)}",
                where=str(self.path),
                fix="another version of Python or of fxtune began it: begin anew in another folder",
            )
        return found

    def add(self, candidate: Candidate) -> None:
        """Keeps a candidate with its score; when this returns, it is on the disk.

        Raises:
            CheckpointError: the file can't be written.
        """
        self.candidates.append(candidate)
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(candidate.model_dump_json() + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unwritable(self.path, error) from None


def _begin(path: Path, search: Mapping[str, Any]) -> list[Candidate]:
    """What the file has; where there is none it is begun."""
    try:
        if path.exists():
            return _read(path, search)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(json.dumps(search) + "\n", "utf-8")
    except OSError as error:
        raise _unwritable(path, error) from None
    return []


def _read(path: Path, search: Mapping[str, Any]) -> list[Candidate]:
    text = path.read_text("utf-8")
    whole, _, torn = text.rpartition("\n")
    first, *lines = whole.split("\n")
    try:
        begun = json.loads(first)
        candidates = [Candidate.model_validate_json(line) for line in lines]
    except (json.JSONDecodeError, ValidationError) as error:
        raise CheckpointError(
            "this file is no history of a search",
            found=str(error).splitlines()[0],
            where=str(path),
            fix="search in another folder, or take the file from where it was written",
        ) from None
    if begun != search:
        raise _other_search(path, begun, search)
    if torn:  # killed while it was written: its candidate is scored again
        with replacing(path) as partial:
            partial.write_text(f"{whole}\n", "utf-8")
    return candidates


def _other_search(path: Path, begun: Any, search: Mapping[str, Any]) -> CheckpointError:
    found = "something else than a search"
    if isinstance(begun, dict):
        odd = [name for name in {**begun, **search} if begun.get(name) != search.get(name)]
        found = f"it differs in {', '.join(odd)}"
    return CheckpointError(
        "this folder holds another search",
        found=found,
        where=str(path),
        fix="call it with what it was begun with (the same weights of the supernet, too), or name another folder",
    )


def _unwritable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError("the history of a search can't be written", found=str(error), where=str(path))
