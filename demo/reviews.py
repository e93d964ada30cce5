"""10,605 film review sentences rated by people, from vaderSentiment's source distribution (Hutto, Gilbert, 2014)."""

from __future__ import annotations

import random
import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SENTENCES = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def load_reviews(cache: Path) -> list[tuple[str, int]]:
    """Sentences, each with 1 for a mean rating above zero and 0 for one below, in an order shuffled alike everywhere.

    Repeated and neutral sentences are left out. `cache` is the folder in which the data is kept.
    """
    file = cache / Path(SENTENCES).name
    if not file.exists():
        _unpack(_download(cache), file)
    reviews: dict[str, int] = {}
    for line in file.read_text("utf-8").splitlines():
        _, rating, sentence = line.split("\t")
        if float(rating) != 0:
            reviews.setdefault(sentence, int(float(rating) > 0))
    shuffled = list(reviews.items())
    random.Random(0).shuffle(shuffled)
    return shuffled


def _download(cache: Path) -> Path:
    """The source distribution, brought by pip, which checks its hash."""
    what = ["--no-deps", "--no-binary", ":all:", "--requirement", str(HERE / "requirements.txt"), "--dest", str(cache)]
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *what], check=True)
    return next(cache.glob("[vV]ader[sS]entiment-*.tar.gz"))


def _unpack(distribution: Path, file: Path) -> None:
    """Writes the one file of the archive inside the archive."""
    with tarfile.open(distribution) as outer:
        name = next(name for name in outer.getnames() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=outer.extractfile(name)) as inner:
            sentences = inner.extractfile(SENTENCES)
            assert sentences is not None
            file.write_bytes(sentences.read())
