"""A model for sweeps, which train in processes of their own and so need it by name."""

import torch
import torchvision
from timm.models.vision_transformer import VisionTransformer
from torch import nn


def vit() -> nn.Module:
    """A small one, the same each time."""
    torch.manual_seed(0)
    return VisionTransformer(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=3)


def resnet() -> nn.Module:
    """One without any attention."""
    torch.manual_seed(0)
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3)


def resnet_by_values() -> nn.Module:
    """One that is as deep as a number in a tensor says."""
    torch.manual_seed(0)
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, torch.ones(4, dtype=int).tolist())
