"""The file of a checkpoint. It is read as data from a stranger: nothing in it is run, and nothing is taken on trust."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError
from torch import Tensor

from fxtune.digests import digest_of, digest_of_text
from fxtune.errors import CheckpointError
from fxtune.files import replacing
from fxtune.saving.backbone import Backbone
from fxtune.saving.origin import Origin
from fxtune.saving.tensors import check_finite, read_header, read_tensors, unreadable, write_tensors

FILE = "tuners.safetensors"
"""Weights, and in its header what `apply` is to be called with and what the backbone is: one file, so that a killed
save leaves the earlier one whole."""
RULES = "rules{}.yaml"
"""The resolved rules once more, a file for each rule set, to be read by people and used elsewhere."""
_FORMAT = "1"
_MOST_TEXT = 2**26
"""Bytes of a text in the header when it is unpacked: more is no fingerprint of a network."""


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds, its weights not yet read.

    Attributes:
        path: of the file.
        origin: how the tuned model was made.
        backbone: what it was tuned on.
        shapes: of each weight.
        digest: of all that the file holds.
    """

    path: Path
    origin: Origin
    backbone: Backbone
    shapes: Mapping[str, tuple[int, ...]]
    digest: str

    def tensors(self) -> dict[str, Tensor]:
        """The weights, on the CPU.

        Raises:
            CheckpointError: the file is damaged, or one has numbers that are not finite.
        """
        header, found = read_tensors(self.path)
        if _digest(header, found) != self.digest:
            raise unreadable(self.path, "what it holds is not what was written: its digest differs")
        check_finite(self.path, found)
        return found

    def contradiction(self, found: str) -> CheckpointError:
        """What to raise where the weights are not what the rules make."""
        return CheckpointError(
            "the weights of this checkpoint are not those of its rules",
            found=found,
            where=str(self.path),
            fix="the file is damaged, or was put together by hand: take it from where it was saved",
        )


def write(folder: Path, tensors: Mapping[str, Tensor], origin: Origin, backbone: Backbone) -> None:
    """Writes a checkpoint into a folder, which is made if there is none. An earlier one gives way in one step.

    Raises:
        CheckpointError: the folder can't be written to.
    """
    header = {
        "fxtune": _FORMAT,
        "origin": origin.model_dump_json(by_alias=True, exclude_defaults=True),
        "backbone": _packed(backbone),
    }
    header["digest"] = _digest(header, tensors)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / FILE, tensors, header)
        for i, rules in enumerate(origin.rule_data()):
            with replacing(folder / RULES.format(f"-{i + 1}" if i else "")) as partial:
                partial.write_text(yaml.safe_dump(rules, sort_keys=False, allow_unicode=True), "utf-8")
    except OSError as error:
        raise CheckpointError("this folder can't be written to", found=str(error), where=str(folder)) from None


def read(folder: Path) -> Checkpoint:
    """What a folder holds.

    Raises:
        CheckpointError: it holds no checkpoint, or one that can't be read.
    """
    path = folder / FILE
    if path.is_symlink() or not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint of fxtune: no file {FILE}",
            found=_instead(folder, path),
            where=str(folder),
            fix="name the folder that tuned.save(folder) wrote, or one of PEFT or diffusers with LoRA in safetensors",
        )
    header, shapes = read_header(path)
    if header.get("fxtune") != _FORMAT:
        raise unreadable(path, f"its header has fxtune: {header.get('fxtune')!r}, not {_FORMAT!r}")
    origin, backbone = _checked(path, header)
    return Checkpoint(path, origin, backbone, shapes, header.get("digest", ""))


def _instead(folder: Path, path: Path) -> str:
    if path.is_symlink():
        return "a link, and links are not followed"
    if not folder.is_dir():
        return "no such folder"
    return f"it has {', '.join(sorted(inside.name for inside in folder.iterdir())[:5]) or 'nothing'}"


def _checked(path: Path, header: Mapping[str, str]) -> tuple[Origin, Backbone]:
    try:
        origin = Origin.model_validate_json(header["origin"])
        backbone = Backbone.model_validate_json(_unpacked(header["backbone"]))
    except KeyError as error:
        raise unreadable(path, f"its header has no {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise unreadable(path, f"{where or 'its header'}: {first['msg']}") from None
    except (ValueError, zlib.error, binascii.Error) as error:
        raise unreadable(path, str(error)) from None
    return origin, backbone


def _digest(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    texts = [header.get("origin", ""), header.get("backbone", "")]
    return digest_of_text("\n".join([*texts, *(f"{name} {digest_of(tensors[name])}" for name in sorted(tensors))]))


def _packed(data: BaseModel) -> str:
    return base64.b85encode(zlib.compress(data.model_dump_json().encode(), 9)).decode("ascii")


def _unpacked(text: str) -> bytes:
    """The text; what would fill the memory is refused."""
    unpacking = zlib.decompressobj()
    data = unpacking.decompress(base64.b85decode(text), _MOST_TEXT)
    if unpacking.unconsumed_tail or not unpacking.eof:
        raise ValueError(f"its header is cut short, or over {_MOST_TEXT} bytes of text")
    return data
