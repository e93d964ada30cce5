"""A process that loads what another one saved. It is asked in lines of JSON, a family and a folder, and answers each
with the digests of what the tuned model gives for that family's inputs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxtune
from families import FAMILIES, awake
from fxtune.digests import digest_of
from fxtune.tuned import one_capture


@torch.no_grad()
def digests(tuned: nn.Module, family: str) -> list[str]:
    """Of every tensor that a tuned model gives in eval mode."""
    leaves = torch.utils._pytree.tree_leaves(tuned.eval()(**FAMILIES[family].inputs(8)))
    return [digest_of(leaf) for leaf in leaves if isinstance(leaf, Tensor)]


class Elsewhere:
    """The process, to be asked. It has this one's threads, and a seed of its own."""

    def __init__(self) -> None:
        command = [sys.executable, __file__, str(torch.get_num_threads())]
        environment = {**os.environ, "PYTHONPATH": str(Path(fxtune.__file__).parent.parent)}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)

    def digests(self, family: str, folder: Path) -> list[str]:
        """Of what is loaded from a folder there."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([family, str(folder)]) + "\n")
        self.process.stdin.flush()
        found: list[str] = json.loads(self.process.stdout.readline())
        return found

    def close(self) -> None:
        """Ends it."""
        self.process.communicate()


def _answer() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    torch.manual_seed(12345)
    with one_capture():
        for line in sys.stdin:
            family, folder = json.loads(line)
            print(json.dumps(digests(fxtune.load(awake(family), folder), family)), flush=True)


if __name__ == "__main__":
    _answer()
