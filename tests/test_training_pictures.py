"""Noise prediction on a diffusers pipeline: it learns, by the numbers of diffusers' own schedule, and samples."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from typer.testing import CliRunner

import fxtune
from fxtune import cli
from fxtune.data import Data, Split, load_data
from fxtune.errors import DataError, FxtuneError, PlanError
from fxtune.recipes import load_recipe
from fxtune.training.denoising import NoisePrediction, OfCaptions, denoised
from fxtune.training.order import Key
from fxtune.training.preparing import Batch, Prepared
from small_pipelines import SIZE, pipeline_of, tokenizer_in

COLOURS = {
    "red": (230, 30, 30),
    "green": (30, 230, 30),
    "blue": (30, 30, 230),
    "grey": (128, 128, 128),
    "sun": (240, 220, 40),
}
RECIPE = {
    "optimizer": {"lr": 0.02, "weight_decay": 0.0},
    "schedule": {"shape": "cosine"},
    "epochs": 40,
    "batch": 10,
    "images": {"size": SIZE, "crop": "center", "border": 1, "flip": False, "mean": [0.5] * 3, "std": [0.5] * 3},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tokenizer_in(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five captioned images."""
    place = tmp_path_factory.mktemp("images")
    for i, (name, colour) in enumerate(COLOURS.items()):
        image = Image.new("RGB", (SIZE, SIZE), colour)
        image.paste((255 - colour[0], colour[1], 255 - colour[2]), (4 * i, 8, 4 * i + 8, 24))
        image.save(place / f"{name}.png")
        (place / f"{name}.txt").write_text(f"a {name} thing")
    return place


@pytest.fixture(scope="module")
def captioned(folder: Path) -> Data:
    """The five, ten times an epoch; and to be tested on, each with forty fixed draws of noise and time."""
    data = load_data(f"captions/{folder}")

    def times(count: int) -> Split:
        return Split(tuple(replace(s, name=f"{s.name} {i}") for i in range(count) for s in data.split("train")))

    return data.with_splits({"train": times(10), "test": times(40)})


def batches(data: Data, pipeline: Any, split: str = "test", size: int = 40) -> Iterator[Batch]:
    prepared = Prepared(data.split(split), OfCaptions(load_recipe(RECIPE), pipeline.tokenizer), 0, training=False)
    for start in range(0, len(prepared), size):
        yield prepared.together([prepared[Key(0, i)] for i in range(start, start + size)])


def loss_of(pipeline: Any, model: Any, data: Data) -> float:
    objective = NoisePrediction(pipeline, torch.device("cpu"))
    with torch.no_grad():
        return float(torch.cat([objective.losses(model, batch) for batch in batches(data, pipeline)]).mean())


@pytest.mark.parametrize(("rules", "epochs"), [("tri_res", 20), ("res_bypass", 60)])
def test_the_conditional_loss_falls_to_half_and_the_pipeline_samples(
    rules: str, epochs: int, tokenizer: Any, captioned: Data, tmp_path: Path
) -> None:
    pipeline = pipeline_of(tokenizer)
    before = {name: weight.clone() for name, weight in pipeline.unet.state_dict().items()}
    at_first = loss_of(pipeline, pipeline.unet, captioned)
    run = fxtune.tune(
        pipeline, captioned, rules, out=tmp_path, recipe=RECIPE, settings={"epochs": epochs}, progress=False
    )
    print(f"{rules}: {at_first:.3f} at first, {run.scores['test']:.3f} tuned")
    assert run.measure == "loss" and run.scores["test"] <= at_first / 2
    assert run.scores["test"] == pytest.approx(loss_of(pipeline, run.tuned, captioned), rel=1e-4)

    assert run.pipeline.unet is run.tuned and pipeline.unet is not run.tuned
    assert all(torch.equal(weight, before[name]) for name, weight in pipeline.unet.state_dict().items())
    run.pipeline.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": 5, "guidance_scale": 3.0, "output_type": "np"}
    drawn = [run.pipeline("a red thing", generator=torch.Generator().manual_seed(0), **given).images for _ in range(2)]
    assert drawn[0].shape == (1, SIZE, SIZE, 3) and (drawn[0] == drawn[1]).all()
    again = fxtune.load(pipeline.unet, tmp_path / "tuned")
    assert loss_of(pipeline, again.eval(), captioned) == pytest.approx(run.scores["test"], rel=1e-4)


def test_the_best_epoch_is_that_of_the_lowest_loss(tokenizer: Any, captioned: Data, tmp_path: Path) -> None:
    data = captioned.with_splits({"train": captioned.split("train"), "val": captioned.split("test")})
    run = fxtune.tune(
        pipeline_of(tokenizer), data, "lora", out=tmp_path, recipe=RECIPE, settings={"epochs": 3}, progress=False
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    vals = [line["loss"] for line in lines if line.get("split") == "val"]
    assert len(vals) == 3 and min(vals) < vals[0]
    assert run.best_epoch == 1 + vals.index(min(vals)) and run.scores["val"] == pytest.approx(min(vals))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_the_published_forward_process(kind: str, tokenizer: Any, captioned: Data) -> None:
    """q(x_t | x_0), written out by its cumulated alphas (Ho et al., 2020, Eq. 4; Salimans and Ho, 2022, for v)."""
    pipeline = pipeline_of(tokenizer, prediction_type=kind)
    batch = next(batches(captioned, pipeline))
    with torch.no_grad():
        found = NoisePrediction(pipeline, torch.device("cpu")).losses(pipeline.unet, batch)
        alphas = DDIMScheduler.from_config(pipeline.scheduler.config).alphas_cumprod
        latents = pipeline.vae.encode(batch.args[0]).latent_dist.mode() * pipeline.vae.config.scaling_factor
        context = pipeline.text_encoder(batch.kwargs["ids"]).last_hidden_state
        for i in (0, 7, 21, 39):
            generator = torch.Generator().manual_seed(int(batch.kwargs["seeds"][i]))
            noise = torch.randn(latents.shape[1:], generator=generator)
            time = int(torch.randint(1000, (), generator=generator))
            kept, added = alphas[time].sqrt(), (1 - alphas[time]).sqrt()
            noisy = kept * latents[i] + added * noise
            target = noise if kind == "epsilon" else kept * noise - added * latents[i]
            answer = pipeline.unet(noisy[None], time, context[i : i + 1]).sample[0]
            assert float(found[i]) == pytest.approx(float((answer - target).square().mean()), rel=1e-4)


def test_noise_is_another_one_for_each_sample_and_epoch(tokenizer: Any, captioned: Data) -> None:
    prepared = Prepared(captioned.split("train"), OfCaptions(load_recipe(RECIPE), tokenizer), 0, training=True)
    seeds = {prepared[Key(epoch, i)].value[2] for epoch in range(4) for i in range(50)}
    assert len(seeds) == 200
    assert prepared[Key(1, 2)].value[2] == prepared[Key(1, 2)].value[2]
    assert Prepared(prepared.split, prepared.preparation, 1, True)[Key(1, 2)].value[2] not in seeds


def test_captions_are_left_out_as_often_as_asked_for(tokenizer: Any, captioned: Data) -> None:
    how = load_recipe(RECIPE, {"captions.dropped": 0.25})
    training = Prepared(captioned.split("train"), OfCaptions(how, tokenizer), 0, training=True)
    texts = [training[Key(epoch, i)].value[1] for epoch in range(8) for i in range(50)]
    assert 60 < texts.count("") < 140
    testing = Prepared(captioned.split("train"), OfCaptions(how, tokenizer), 0, training=False)
    assert all(testing[Key(epoch, i)].value[1] for epoch in range(4) for i in range(5))


def test_a_pipeline_on_the_command_line(tokenizer: Any, folder: Path, tmp_path: Path) -> None:
    pipeline_of(tokenizer).save_pretrained(tmp_path / "pipe")
    command = ["tune", f"diffusers/{tmp_path / 'pipe'}", "-r", "lora", "-d", f"captions/{folder}"]
    changes = ["--set", "epochs=1", "--set", f"images.size={SIZE}"]
    done = CliRunner().invoke(
        cli.app, [*command, "--out", str(tmp_path / "out"), "--recipe", "text_to_image", *changes]
    )
    assert done.exit_code == 0, done.output
    assert "no split to test on" in done.output and (tmp_path / "out" / "tuned").is_dir()


def test_refusals(tokenizer: Any, captioned: Data, folder: Path, tmp_path: Path) -> None:
    pipeline = pipeline_of(tokenizer)
    with pytest.raises(PlanError, match="pass the pipeline"):
        fxtune.tune(pipeline.unet, captioned, "lora", out=tmp_path, recipe=RECIPE)
    with pytest.raises(FxtuneError, match=r"no model_index\.json"):
        fxtune.tune(f"diffusers/{folder}", captioned, "lora", out=tmp_path, recipe=RECIPE)
    with pytest.raises(FxtuneError, match="no such form"):
        fxtune.tune("timm/vit", captioned, "lora", out=tmp_path, recipe=RECIPE)
    pipeline.vae = None
    with pytest.raises(DataError, match="no part `vae`"):
        fxtune.tune(pipeline, captioned, "lora", out=tmp_path, recipe=RECIPE)
    pipeline.unet = None
    with pytest.raises(PlanError, match="not known"):
        denoised(pipeline)
