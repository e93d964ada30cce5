"""One small model of each family, with inputs and a target, as tests train them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from timm.models.convnext import ConvNeXt
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import fxtune
from fxtune.tuned import TunedModel


@dataclass(frozen=True)
class Family:
    """How to build a model, what it is fed, and what its loss is."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], dict[str, Any]]
    loss: Callable[[Any, int], torch.Tensor]
    head: str


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int, size: int = 32) -> dict[str, Any]:
    return {"x": torch.randn(batch, 3, size, size, generator=generator(batch))}


def texts(batch: int, length: int = 9) -> dict[str, Any]:
    ids = torch.randint(40, (batch, length), generator=generator(batch))
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def latents(batch: int) -> dict[str, Any]:
    made = generator(batch)
    return {
        "sample": torch.randn(batch, 4, 16, 16, generator=made),
        "timestep": torch.arange(1, batch + 1),
        "encoder_hidden_states": torch.randn(batch, 5, 32, generator=made),
    }


def classification(output: Any, batch: int) -> torch.Tensor:
    logits = output if isinstance(output, torch.Tensor) else output.logits
    return nn.functional.cross_entropy(logits, torch.arange(batch) % logits.shape[-1])


def noise_prediction(output: Any, batch: int) -> torch.Tensor:
    target = torch.randn(output.sample.shape, generator=generator(7))
    return nn.functional.mse_loss(output.sample, target)


def unet() -> nn.Module:
    return diffusers.UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=4,
    )


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        num_labels=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config)


FAMILIES = {
    "vit": Family(
        lambda: VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=4, init_values=0.5
        ),
        images,
        classification,
        "head",
    ),
    "convnext": Family(
        lambda: ConvNeXt(depths=(1, 1, 2, 1), dims=(16, 24, 32, 40), num_classes=4, ls_init_value=0.5),
        lambda batch: images(batch, 64),
        classification,
        "head.fc",
    ),
    "resnet": Family(
        lambda: ResNet(Bottleneck, (1, 2, 1, 1), channels=(8, 8, 16, 16), stem_width=8, num_classes=4),
        lambda batch: images(batch, 64),
        classification,
        "fc",
    ),
    "bert": Family(bert, texts, classification, "classifier"),
    "unet": Family(unet, latents, noise_prediction, "conv_out"),
}


def build(name: str, seed: int = 0) -> nn.Module:
    """The model of a family in eval mode, with reproducible weights and statistics.

    The head is drawn at the size of a trained one: with a fresh head (standard deviation 0.02) no feature could move
    the loss while it is frozen.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FAMILIES[name].build()
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.data.add_(torch.rand_like(buffer) * 0.1)
        for weight in model.get_submodule(FAMILIES[name].head).parameters():
            nn.init.normal_(weight, std=0.5)
    return model.eval()


@torch.no_grad()
def awake(family: str) -> nn.Module:
    """A model in which all weights count, as in a trained one: BERT's fresh ones are so small that no token heeds
    another, and the branches of a fresh ResNet end in factors of zero.
    """
    model = build(family)
    for name, weight in model.named_parameters():
        if family == "resnet" and not weight.any() and name.endswith("weight"):
            weight.fill_(0.5)
        if family == "bert" and weight.dim() == 2 and not name.startswith(FAMILIES[family].head):
            weight.mul_(6)
    return model


def tuned_on(model: nn.Module, inputs: Any, rules: Any, seed: int = 1, **options: Any) -> TunedModel:
    """A tuned model in eval mode whose every trained weight has moved; `inputs`: example inputs, or a family's name."""
    if isinstance(inputs, str):
        inputs = ((), FAMILIES[inputs].inputs(2))
    tuned = fxtune.apply(model, rules, seed=seed, example_inputs=inputs, **options)
    with torch.no_grad():
        for i, name in enumerate(tuned.trainable):
            weight = tuned.get_parameter(name)
            weight.add_(torch.randn(weight.shape, generator=generator(1000 * seed + i)).to(weight.dtype), alpha=0.05)
    return tuned.eval()
