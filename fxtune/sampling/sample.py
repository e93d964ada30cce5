"""Drawing images for captions, one file each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fxtune.digests import digest_of
from fxtune.errors import CheckpointError, DataError
from fxtune.files import replacing
from fxtune.libraries import library
from fxtune.progress import progress as with_bar
from fxtune.training import denoised, seed_of

CAPTIONS = "metadata.jsonl"


def sample(
    pipeline: Any,
    captions: Sequence[str],
    out: str | Path,
    *,
    steps: int = 50,
    guidance: float = 7.5,
    seed: int = 0,
    batch: int = 1,
    progress: bool = True,
) -> list[Path]:
    """Draws an image for each caption, by PLMS (Liu et al., ICLR 2022) as the latent diffusion models were sampled.

        >>> run = fxtune.tune(pipeline, "captions/birds", "tri_res", out="out/birds", recipe="text_to_image")
        >>> fxtune.sample(run.pipeline, ["a wren on a branch"], "out/drawn")

    An image's noise hangs on its number and the seed alone: neither the size of a batch nor what was drawn before
    changes it. Files that are there stay, so a killed call is gone on with.

    Args:
        pipeline: of diffusers, with the tuned model in it. Its models are in evaluation mode from then on; its own
            sampler stays.
        captions: one an image.
        out: folder for `00000.png` and so on, and `metadata.jsonl`; as ``captions/OUT`` it is data again.
        steps: of the sampler.
        guidance: how much the caption is exaggerated (classifier-free guidance); 1 is not at all.
        seed: of all noise.
        batch: images at a time.
        progress: whether a terminal shows how far it is.

    Returns:
        The files, in the captions' order.

    Raises:
        DataError: there are no captions, or not so many steps or images at a time.
        CheckpointError: the folder holds images for other captions, or of another model; or can't be written to.
    """
    _check(captions, steps, batch)
    folder = Path(out)
    files = [folder / f"{i:05d}.png" for i in range(len(captions))]
    model = _digest(pipeline)
    settings = {"steps": steps, "guidance": guidance, "seed": seed, "model": model}
    lines = [
        json.dumps({"file_name": file.name, "text": caption, **settings})
        for file, caption in zip(files, captions, strict=True)
    ]
    _begin(folder, "".join(f"{line}\n" for line in lines))
    sampler = _with_plms(pipeline)
    todo = [i for i, file in enumerate(files) if not file.exists()]
    groups = [todo[start : start + batch] for start in range(0, len(todo), batch)]
    for group in with_bar(groups, "Drawing", len(groups)) if progress else groups:
        drawn = sampler(
            [captions[i] for i in group],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed_of("drawn", seed, i)) for i in group],
        ).images
        for i, image in zip(group, drawn, strict=True):
            with replacing(files[i]) as partial:
                image.save(partial, format="PNG")
    return files


def _digest(pipeline: Any) -> str:
    """The weights of all that draws: denoiser, text encoder and VAE.

    Raises:
        PlanError: it has no denoiser that a model card knows.
    """
    denoised(pipeline)
    models = [part for _, part in sorted(pipeline.components.items()) if isinstance(part, torch.nn.Module)]
    each = (digest_of(tensor) for model in models for _, tensor in sorted(model.state_dict().items()))
    return hashlib.sha256("".join(each).encode()).hexdigest()[:16]


def _check(captions: Sequence[str], steps: int, batch: int) -> None:
    if not captions:
        raise DataError("nothing is to be drawn", found="no captions", fix="give one for each image")
    if isinstance(captions, str) or not all(isinstance(caption, str) for caption in captions):
        raise DataError("captions are a list of texts", found=repr(captions)[:100], fix="put a single one in a list")
    for name, value in (("steps", steps), ("batch", batch)):
        if type(value) is not int or value < 1:
            raise DataError(f"{name} is a whole number of 1 at least", found=f"{name}={value!r}")


def _begin(folder: Path, lines: str) -> None:
    path = folder / CAPTIONS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.read_text("utf-8") != lines:
            raise CheckpointError(
                "this folder holds images for other captions, or drawn otherwise or by another model", where=str(path),
                fix="draw into another folder",
            )  # fmt: skip
        with replacing(path) as partial:
            partial.write_text(lines, "utf-8")
    except OSError as error:
        raise CheckpointError("images can't be written here", found=str(error), where=str(folder)) from None


def _with_plms(pipeline: Any) -> Any:
    """The pipeline with that sampler, in evaluation mode and without a bar of its own."""
    schedulers = library("diffusers", what="Drawing", extra="diffusers")
    plms = schedulers.PNDMScheduler.from_config(pipeline.scheduler.config, skip_prk_steps=True)
    made = type(pipeline)(**{**pipeline.components, "scheduler": plms})
    made.set_progress_bar_config(disable=True)
    for part in made.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return made
