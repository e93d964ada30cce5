"""How near drawn images are to real ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from fxtune.data import Data, DataLike, load_data
from fxtune.errors import DataError
from fxtune.libraries import library
from fxtune.modes import in_mode
from fxtune.progress import progress as with_bar


def fid(
    drawn: DataLike | Data,
    real: DataLike | Data,
    *,
    features: nn.Module | int = 2048,
    split: str = "train",
    progress: bool = True,
) -> float:
    """The Fréchet distance of two sets of images in a network's features (FID: Heusel et al., NeurIPS 2017).

    Args:
        drawn: images, as `load_data` takes them: ``captions/out/drawn``.
        real: others.
        features: which layer of Inception v3 torchmetrics computes them with (2048 is FID's; its weights are
            downloaded, by the package torch-fidelity), or a module of your own: images, B x 3 x H x W in uint8, to
            B x D. It runs where it is, in eval mode, and stays as it is.
        split: of either.
        progress: whether a terminal shows how far it is.

    Returns:
        The distance, 0 at least; of two images a side at least. What is told of fewer than some thousand is noise.

    Raises:
        DataError: fewer than two images, or the features can't be had.
    """
    metric, device = _metric(features)
    transforms = library("torchvision.transforms.v2.functional", what="The distance of images", extra="train")
    for data, is_real in ((drawn, False), (real, True)):
        known = data if isinstance(data, Data) else load_data(data)
        samples = known.split(split)
        if len(samples) < 2 or known.kind == "texts":
            raise DataError(
                "the distance of images needs two of them at least",
                found=f"{len(samples)} {known.kind}",
                where=known.source,
            )
        pictures: Iterable[Any] = with_bar(samples, known.source, len(samples)) if progress else samples
        with in_mode(metric, training=False), torch.no_grad():
            for one in pictures:
                assert one.picture is not None
                # One at a time: images may have any size.
                metric.update(transforms.pil_to_tensor(one.picture()).unsqueeze(0).to(device), real=is_real)
    return max(0.0, float(metric.compute()))  # of equal sets the eigenvalues' rounding may leave less


def _metric(features: nn.Module | int) -> tuple[Any, torch.device]:
    """The distance in these features, and where they are computed."""
    metrics = library("torchmetrics.image.fid", what="The distance of images", extra="train")
    try:
        if isinstance(features, nn.Module):
            # Of a network that does not tell its width, torchmetrics takes that of what a random image gives.
            with torch.random.fork_rng(devices=[]), in_mode(features, training=False), torch.no_grad():
                metric = metrics.FrechetInceptionDistance(feature=features)
        else:
            metric = metrics.FrechetInceptionDistance(feature=features)
            metric.set_dtype(torch.float64)  # which casts the network's weights: Inception's own, nobody else's
    except (ModuleNotFoundError, OSError) as error:
        raise DataError(
            "the features of Inception v3 can't be had",
            found=str(error),
            fix="pip install torch-fidelity, which downloads the weights; or pass a module: features=...",
        ) from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            "the distance of images can't be computed in these features",
            found=f"{features!r}"[:200] + f": {error}",
            fix="name a layer of Inception v3 by its width (64, 192, 768, 2048); or pass a module, whose "
            "`num_features` is its width, where it does not take random images of 299 x 299",
        ) from None
    weights = features.parameters() if isinstance(features, nn.Module) else ()
    device = next((weight.device for weight in weights), torch.device("cpu"))
    return metric.to(device), device
