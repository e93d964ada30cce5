"""Images drawn for captions, and their distance from others."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from diffusers import PNDMScheduler
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import fxtune
from fxtune import cli
from fxtune.errors import CheckpointError, DataError
from fxtune.training import with_model
from small_pipelines import SIZE, pipeline_of, tokenizer_in

CAPTIONS = ["a red thing", "a blue thing", "a red thing"]
FEW: dict[str, Any] = {"steps": 3, "progress": False}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return pipeline_of(tokenizer_in(tmp_path_factory.mktemp("words")))


@pytest.fixture(scope="module")
def drawn(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    fxtune.sample(pipeline, CAPTIONS, folder, **FEW)
    return folder


def pixels(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB")))


def test_one_file_each_and_data_again(drawn: Path) -> None:
    data = fxtune.load_data(f"captions/{drawn}")
    assert [sample.texts for sample in data.split("train")] == [(caption,) for caption in CAPTIONS]
    images = [pixels(drawn / f"{i:05d}.png") for i in range(3)]
    assert all(image.shape == (SIZE, SIZE, 3) for image in images)
    assert not torch.equal(images[0], images[2])  # one caption, two draws


def test_what_is_drawn_is_what_the_pipeline_draws_by_plms(pipeline: Any, drawn: Path) -> None:
    """With a sampler of diffusers' own, from the noise that the number of an image stands for."""
    from fxtune.training import seed_of

    plms = PNDMScheduler(skip_prk_steps=True, steps_offset=1)
    made = type(pipeline)(**{**pipeline.components, "scheduler": plms})
    made.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(seed_of("drawn", 0, 1))
    image = made(CAPTIONS[1], num_inference_steps=3, guidance_scale=7.5, generator=noise).images[0]
    assert torch.equal(torch.from_numpy(np.array(image)), pixels(drawn / "00001.png"))


def test_batches_and_what_is_there_change_nothing(pipeline: Any, drawn: Path, tmp_path: Path) -> None:
    fxtune.sample(pipeline, CAPTIONS, tmp_path, batch=2, **FEW)
    for i in range(3):  # two at a time may round otherwise by a step of 255
        found, expected = pixels(tmp_path / f"{i:05d}.png"), pixels(drawn / f"{i:05d}.png")
        assert (found.int() - expected.int()).abs().max() <= 1
    (tmp_path / "00001.png").unlink()
    kept = (tmp_path / "00000.png").stat().st_mtime_ns
    fxtune.sample(pipeline, CAPTIONS, tmp_path, **FEW)
    assert torch.equal(pixels(tmp_path / "00001.png"), pixels(drawn / "00001.png"))
    assert (tmp_path / "00000.png").stat().st_mtime_ns == kept


def test_a_tuned_model_draws_other_images(pipeline: Any, drawn: Path, tmp_path: Path) -> None:
    """On the command line, and the pipeline stays as it was."""
    pipeline.save_pretrained(tmp_path / "pipe")
    tuned = fxtune.apply(pipeline.unet, "lora", seed=0)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if name.endswith(".B"):
                weight.normal_(std=0.5)
    tuned.save(tmp_path / "tuned")
    command = ["sample", f"diffusers/{tmp_path / 'pipe'}", "-c", CAPTIONS[0], "--steps", "3"]
    for name, more in (("plain", []), ("tuned", ["--tuned", str(tmp_path / "tuned")])):
        done = CliRunner().invoke(cli.app, [*command, "--out", str(tmp_path / name), *more])
        assert done.exit_code == 0, done.output
    assert torch.equal(pixels(tmp_path / "plain" / "00000.png"), pixels(drawn / "00000.png"))
    assert not torch.equal(pixels(tmp_path / "tuned" / "00000.png"), pixels(drawn / "00000.png"))


def test_refusals(pipeline: Any, drawn: Path) -> None:
    with pytest.raises(DataError, match="no captions"):
        fxtune.sample(pipeline, [], drawn, **FEW)
    for bad, told in (
        ({"batch": 0}, "batch"), ({"batch": -1}, "batch"), ({"steps": 0}, "steps"), ({"steps": 2.0}, "steps"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=f"{told} is a whole number"):
            fxtune.sample(pipeline, CAPTIONS, drawn, **{**FEW, **bad})
    for captions in ("a red thing", [1]):
        with pytest.raises(DataError, match="list of texts"):
            fxtune.sample(pipeline, captions, drawn, **FEW)  # type: ignore[arg-type]
    before = json.dumps(sorted((path.name, path.stat().st_mtime_ns) for path in drawn.iterdir()))
    with pytest.raises(CheckpointError, match="other captions"):
        fxtune.sample(pipeline, CAPTIONS[:2], drawn, **FEW)
    with pytest.raises(CheckpointError, match="other captions"):
        fxtune.sample(pipeline, CAPTIONS, drawn, seed=1, **FEW)
    with pytest.raises(CheckpointError, match="another model"):
        fxtune.sample(with_model(pipeline, fxtune.apply(pipeline.unet, "bitfit", seed=0)), CAPTIONS, drawn, **FEW)
    other = type(pipeline)(**{**pipeline.components, "vae": copy.deepcopy(pipeline.vae)})
    with torch.no_grad():
        next(other.vae.decoder.parameters()).add_(1)
    with pytest.raises(CheckpointError, match="another model"):
        fxtune.sample(other, CAPTIONS, drawn, **FEW)
    assert before == json.dumps(sorted((path.name, path.stat().st_mtime_ns) for path in drawn.iterdir()))


# ---- the distance of images ------------------------------------------------------------------------------------------


class Means(nn.Module):
    """Six features: the mean of each channel in the upper and in the lower half."""

    num_features = 6

    def forward(self, images: Tensor) -> Tensor:
        halves = images.double().chunk(2, dim=2)
        return torch.cat([half.mean((2, 3)) for half in halves], 1)


def images_in(folder: Path, seed: int, count: int) -> Path:
    """Pictures of different sizes, each with a caption."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    for i in range(count):
        colours = random.integers(0, 256 - 40 * seed, (8 + 2 * (i % 3), 8, 3), dtype=np.uint8)
        Image.fromarray(colours).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text("a thing")
    return folder


def test_the_distance_is_that_of_two_normal_distributions(tmp_path: Path) -> None:
    """``|m - m'|² + tr(C + C' - 2 (C C')^½)`` (Heusel et al., 2017, Eq. 6), by scipy's square root."""
    folders = [images_in(tmp_path / str(seed), seed, 12) for seed in (0, 1)]
    found = fxtune.fid(*(f"captions/{folder}" for folder in folders), features=Means(), progress=False)
    features = [
        torch.cat([Means()(pixels(path).permute(2, 0, 1)[None]) for path in sorted(folder.glob("*.png"))]).numpy()
        for folder in folders
    ]
    (m, c), (n, d) = ((each.mean(0), np.cov(each, rowvar=False)) for each in features)
    expected = ((m - n) ** 2).sum() + np.trace(c + d - 2 * scipy.linalg.sqrtm(c @ d).real)
    assert found == pytest.approx(expected, rel=1e-6) and found > 1
    same = fxtune.fid(f"captions/{folders[0]}", f"captions/{folders[0]}", features=Means(), progress=False)
    assert same == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("told", [True, False])
def test_a_network_of_ones_own_stays_as_it_is(tmp_path: Path, told: bool) -> None:
    """Whether it tells its width or not: in its own dtype and mode, with its statistics where they were."""
    folder = images_in(tmp_path / "drawn", 0, 4)
    network = nn.Sequential(Scaled(), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    if told:
        network.num_features = 4
    network[1].eval()
    before, drawing = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    one = fxtune.fid(f"captions/{folder}", f"captions/{folder}", features=network, progress=False)
    assert one == pytest.approx(0, abs=1e-4)
    assert one >= 0 and torch.equal(torch.get_rng_state(), drawing)
    after = network.state_dict()
    assert all(after[name].dtype == was.dtype and torch.equal(after[name], was) for name, was in before.items())
    assert [module.training for module in network.modules()] == [True, True, False, True, True, True]


class Scaled(nn.Module):
    """Images between 0 and 1, in float32."""

    def forward(self, images: Tensor) -> Tensor:
        return images / 255


def test_equal_sets_are_never_less_than_nothing_apart(tmp_path: Path) -> None:
    """Rounding would leave a little less than 0 in some."""
    for seed in (0, 1, 2, 3):
        data = f"captions/{images_in(tmp_path / str(seed), seed, 3)}"
        assert 0 <= fxtune.fid(data, data, features=Means(), progress=False) < 1e-4


def test_what_has_no_distance(tmp_path: Path) -> None:
    one, two = images_in(tmp_path / "one", 0, 1), images_in(tmp_path / "two", 0, 2)
    with pytest.raises(DataError, match="two of them"):
        fxtune.fid(f"captions/{one}", f"captions/{two}", features=Means(), progress=False)
    odd: list[Any] = ["x", None, nn.Linear(2, 2), nn.Sequential(nn.Conv2d(3, 2, 400), nn.Flatten())]
    for features in odd:
        with pytest.raises(DataError, match="these features"):
            fxtune.fid(f"captions/{two}", f"captions/{two}", features=features, progress=False)
    with pytest.raises(DataError, match="torch-fidelity"):
        fxtune.fid(f"captions/{two}", f"captions/{two}", progress=False)
