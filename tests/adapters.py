"""Small models with LoRA, here and in PEFT, and what each computes."""

import copy
from pathlib import Path
from typing import Any

import diffusers
import peft
import torch
import transformers
from torch import nn

import fxtune
from families import FAMILIES, build, texts
from fxtune.digests import digest_of
from fxtune.tuned import TunedModel

CONFIG, WEIGHTS, DIFFUSERS = "adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors"


def gpt2() -> nn.Module:
    sizes = {"vocab_size": 40, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2, "num_labels": 3}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False}
    return transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**sizes, **ids))


def llama() -> nn.Module:
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "use_cache": False}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))


def unet() -> nn.Module:
    """Of one resolution: a 1x1 convolution before and behind each transformer, and one around a residual block."""
    blocks = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
    sizes = {"block_out_channels": [16], "norm_num_groups": 4, "attention_head_dim": 4, "layers_per_block": 1}
    return diffusers.UNet2DConditionModel(
        sample_size=16, cross_attention_dim=32, mid_block_type=None, **blocks, **sizes
    )


SMALL = {"gpt2": gpt2, "llama": llama, "unet": unet}


def plain(family: str) -> nn.Module:
    if family not in SMALL:
        return build(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SMALL[family]().eval()


def inputs_of(family: str, batch: int = 3) -> dict[str, Any]:
    return FAMILIES[family].inputs(batch) if family in FAMILIES else texts(batch)


def output(model: nn.Module, family: str) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = torch.utils._pytree.tree_leaves(model.eval()(**inputs_of(family)))[0]
    return found


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """To 1e-6 of the largest output."""
    return a.shape == b.shape and float((a - b).abs().max()) <= 1e-6 * float(b.abs().max())


def moved(model: nn.Module, seed: int = 1) -> nn.Module:
    """Every weight that trains gets other numbers: B leaves zero."""
    made = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=made), alpha=0.1)
    return model


def in_peft(model: nn.Module, seed: int = 1, **config: Any) -> Any:
    """The model with LoRA as PEFT trains it, on a copy."""
    return moved(peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**config)), seed).eval()


def from_peft(model: nn.Module, folder: Path) -> nn.Module:
    """What PEFT makes of a folder. It warns where a name in it finds no place, and a warning is an error here."""
    return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()


def loaded(model: nn.Module, folder: Path, family: str) -> TunedModel:
    return fxtune.load(model, folder, example_inputs=((), inputs_of(family, 2)))


def digests(model: nn.Module) -> dict[str, str]:
    return {name: digest_of(tensor) for name, tensor in model.state_dict().items()}
