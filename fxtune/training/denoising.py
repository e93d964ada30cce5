"""Noise prediction on the model of a diffusers pipeline (Ho, Jain and Abbeel, 2020; Rombach et al., 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxtune.cards import component
from fxtune.data import Sample
from fxtune.errors import DataError, PlanError
from fxtune.libraries import library
from fxtune.recipes import Recipe
from fxtune.training.objective import Objective
from fxtune.training.preparing import Batch, OfImages, Preparation


def denoised(pipeline: Any) -> str:
    """What a pipeline calls its model that predicts noise.

    Raises:
        PlanError: it has none that a model card knows.
    """
    parts: dict[str, nn.Module] = {
        name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)
    }
    found: list[str] = [name for name, part in parts.items() if component(part) == name]
    if len(found) != 1:
        raise PlanError(
            f"which model of this {type(pipeline).__name__} is to be tuned is not known",
            found=", ".join(f"{name}: {type(part).__name__}" for name, part in parts.items()) or "no models",
            fix="take a pipeline of which a model card says so (`component:` in models/)",
        )
    return found[0]


def with_model(pipeline: Any, model: nn.Module) -> Any:
    """A pipeline of the same parts with another model that predicts noise."""
    return type(pipeline)(**{**pipeline.components, denoised(pipeline): model})


class OfCaptions(Preparation):
    """Images from -1 to 1, and the token ids of their captions; the noise is drawn later, from a sample's seed."""

    def __init__(self, recipe: Recipe, tokenizer: Any) -> None:
        self._images, self._tokenizer, self._dropped = OfImages(recipe.images), tokenizer, recipe.captions.dropped

    def value(self, sample: Sample, training: bool) -> tuple[Tensor, str, int]:
        pixels = self._images.value(sample, training)
        keeps = not training or float(torch.rand(())) >= self._dropped
        return pixels, sample.texts[0] if keeps else "", int(torch.randint(2**62, ()))

    def stand_in(self) -> tuple[Tensor, str, int]:
        return self._images.stand_in(), "", 0

    def together(self, values: Sequence[tuple[Tensor, str, int]]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        pixels, captions, seeds = zip(*values, strict=True)
        ids = self._tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=self._tokenizer.model_max_length,
            return_tensors="pt",
        ).input_ids  # fmt: skip
        return (torch.stack(pixels),), {"ids": ids, "seeds": torch.tensor(seeds)}


class NoisePrediction(Objective):
    """The squared error of the predicted noise (or velocity), at times drawn evenly.

    Args:
        pipeline: its autoencoder and text encoder stay as they are; its noise schedule says what is predicted.
        device: where its parts are put.

    Raises:
        DataError: the pipeline lacks a part.
    """

    measure = "loss"
    higher = False

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        self._vae, self._text = (part_of(pipeline, name).eval().to(device) for name in ("vae", "text_encoder"))
        diffusers = library("diffusers", what="Noise prediction", extra="diffusers")
        # The training schedule, whichever sampler the pipeline has.
        self._schedule = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        latents, context = self._encoded(batch)
        drawn = [_drawn(int(seed), latents.shape[1:], self._schedule.config.num_train_timesteps)
                 for seed in batch.kwargs["seeds"]]  # fmt: skip
        noise = torch.stack([noise for noise, _ in drawn]).to(latents)
        times = torch.tensor([time for _, time in drawn], device=latents.device)
        noisy = self._schedule.add_noise(latents, noise, times)
        kind = self._schedule.config.prediction_type
        target = self._schedule.get_velocity(latents, noise, times) if kind == "v_prediction" else noise
        found: Tensor = model(noisy, times, encoder_hidden_states=context, return_dict=False)[0]
        wide = torch.promote_types(found.dtype, torch.float32)
        return (found.to(wide) - target.to(wide)).square().flatten(1).mean(1)

    def metric(self) -> Any:
        return library("torchmetrics", what="Evaluation", extra="train").MeanMetric()

    def update(self, metric: Any, model: nn.Module, batch: Batch, among: Sequence[int] | None) -> None:
        metric.update(self.losses(model, batch), batch.weights)

    def result(self, metric: Any) -> float:
        return float(metric.compute())

    @torch.no_grad()
    def _encoded(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Latents, B x C x H x W, and the captions' hidden states, B x N x D, in the dtype of the images."""
        (pixels,) = batch.args
        given = next(self._vae.parameters()).dtype
        # The mean of the autoencoder's distribution: a draw would be another noise, drawn where nobody sees it.
        latents: Tensor = self._vae.encode(pixels.to(given)).latent_dist.mode() * self._vae.config.scaling_factor
        context: Tensor = self._text(batch.kwargs["ids"])[0]
        return latents.to(pixels.dtype), context.to(pixels.dtype)


def _drawn(seed: int, shape: Sequence[int], times: int) -> tuple[Tensor, int]:
    """The noise of one sample, and its time: on the CPU, alike for any number of processes and on any device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tuple(shape), generator=generator), int(torch.randint(times, (), generator=generator))


def part_of(pipeline: Any, name: str) -> Any:
    """A part of a pipeline by its name.

    Raises:
        DataError: it has none of that name.
    """
    found = pipeline.components.get(name)
    if found is None:
        raise DataError(
            f"this {type(pipeline).__name__} has no part `{name}`",
            found=f"the parts {', '.join(name for name, part in pipeline.components.items() if part is not None)}",
            fix="take a pipeline that encodes images and captions",
        )
    return found
