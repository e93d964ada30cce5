"""Stable Diffusion's U-Net at half its widths, which trains on a CPU, and what it takes."""

from __future__ import annotations

import diffusers
import torch
from torch import Tensor, nn

LATENTS, SIDE = 2, 32


def half_wide_unet() -> nn.Module:
    """With random weights."""
    model: nn.Module = diffusers.UNet2DConditionModel(
        sample_size=SIDE, block_out_channels=(160, 320, 640, 640), cross_attention_dim=768, attention_head_dim=8
    )
    return model


def latents() -> dict[str, Tensor]:
    """Noise, times, and the hidden states of captions."""
    return {
        "sample": torch.randn(LATENTS, 4, SIDE, SIDE),
        "timestep": torch.arange(1, LATENTS + 1),
        "encoder_hidden_states": torch.randn(LATENTS, 77, 768),
    }
