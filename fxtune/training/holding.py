"""One training at a time in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fxtune.errors import CheckpointError

LOCK = ".lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps other processes from training into it; the system lets go of it where this one dies.

    A file system that can't lock files keeps nobody away.

    Raises:
        CheckpointError: another does, or the folder can't be written to.
    """
    lock = FileLock(folder / LOCK, blocking=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(NotImplementedError):
            lock.acquire()
    except Timeout:
        raise CheckpointError(
            "another process trains into this folder",
            found="its lock is held",
            where=str(folder / LOCK),
            fix="wait for it to end, end it, or name another folder",
        ) from None
    except OSError as error:
        raise CheckpointError("this folder can't be written to", found=str(error), where=str(folder)) from None
    try:
        yield
    finally:
        lock.release()
