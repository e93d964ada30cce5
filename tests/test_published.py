"""Rule files of published methods on whole models: they start as the model, train, and equal their original form."""

import copy
from typing import Any

import peft
import pytest
import timm
import torch
import transformers
from torch import nn

import fxtune
from families import FAMILIES, build, generator
from fxtune.matching import Operation
from fxtune.resources import rules_dir
from fxtune.source import load


def value(output: Any) -> torch.Tensor:
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return found


def of_tuners(tuned: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in tuned.named_parameters() if "tuners" in name.split(".")}


def in_float64(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in inputs.items()}


def awaken(tuned: nn.Module) -> None:
    """Every tuner weight drawn anew, none of them zero."""
    for i, weight in enumerate(of_tuners(tuned).values()):
        weight.data = torch.randn(weight.shape, generator=generator(i), dtype=weight.dtype) * 0.3


# ---- they apply, start as the model, and train -----------------------------------------------------------------------


def lora_weights(model: nn.Module) -> int:
    """r (D_in + D) for each projection of queries, keys and values, fused or not."""
    ends = ("query", "key", "value", "qkv", "to_q", "to_k", "to_v")
    maps = [m for path, m in model.named_modules() if path.split(".")[-1] in ends and isinstance(m, nn.Linear)]
    return sum(8 * (m.in_features + m.out_features) for m in maps)


def biases(model: nn.Module) -> int:
    return sum(weight.numel() for name, weight in model.named_parameters() if name.endswith("bias"))


def adapters(dim: int, *widths: int) -> int:
    return sum(2 * width * dim + dim + width for width in widths)


WIDTHS = {  # of every MHA, of every FFN
    "vit": ([32] * 2, [32] * 2),
    "bert": ([32] * 2, [32] * 2),
    "convnext": ([], [16, 24, 32, 32, 40]),
    "unet": ([32] * 2 + [64] * 2 + [32] * 4, [32, 64, 32, 32]),
}
CASES = [
    *(("lora", name) for name in ("vit", "bert", "unet")),
    *(("bitfit", name) for name in FAMILIES),
    *((rules, name) for rules in ("adapter", "adapter_houlsby") for name in WIDTHS),
]


@pytest.mark.parametrize(("rules", "name"), CASES)
def test_a_published_method_trains_from_where_the_model_is(rules: str, name: str) -> None:
    family, model = FAMILIES[name], build(name)
    for key, weight in model.named_parameters():
        if not key.endswith("bias") and not weight.any():
            weight.data.fill_(0.5)  # the last norm of a residual branch: behind a factor of zero nothing could train
    data = {**load(rules_dir() / f"{rules}.yaml").data, "train": ["tuners"]}
    tuned = fxtune.apply(model, data, seed=1)
    inputs = family.inputs(8)
    with torch.no_grad():
        assert torch.equal(value(tuned.eval()(**inputs)), value(model(**inputs)))
    mha, ffn = WIDTHS.get(name, ([], []))
    expected = {
        "lora": lora_weights(model),
        "bitfit": biases(model),
        "adapter": adapters(96, *ffn),
        "adapter_houlsby": adapters(64, *mha, *ffn),
    }[rules]
    trained = [weight for weight in tuned.parameters() if weight.requires_grad]
    assert sum(weight.numel() for weight in trained) == expected > 0
    start = {key: tensor.clone() for key, tensor in tuned.state_dict().items()}
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = family.loss(tuned(**inputs), 8)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] <= 0.9 * losses[0], (losses[0], losses[-1])
    for key, tensor in tuned.state_dict().items():
        assert torch.equal(tensor, start[key]) == ("tuners" not in key.split(".")), key


# ---- they equal their original form, written by hand -----------------------------------------------------------------


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=0, use_cache=False
    )
    return transformers.GPT2Model(config)


def albert() -> nn.Module:
    config = transformers.AlbertConfig(
        vocab_size=40,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.AlbertModel(config)


def mha() -> nn.Module:
    """PyTorch's own, which computes with the sequence in front."""
    from torchvision.models import VisionTransformer

    return VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64)


WORDS = {"input_ids": torch.arange(27).reshape(3, 9)}
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    **{name: (lambda name=name: build(name), FAMILIES[name].inputs(3)) for name in FAMILIES},
    "gpt2": (gpt2, {**WORDS, "use_cache": False}),
    "albert": (albert, WORDS),
    "torch mha": (mha, {"x": torch.randn(3, 3, 32, 32)}),
}
LORA_EVERYWHERE = {"rules": [{"at": "linear", "insert": {"lora": {"rank": 3, "alpha": 7.5}}}]}


def merged(model: nn.Module, tuned: nn.Module, operations: dict[str, Operation]) -> nn.Module:
    """A copy of the model with each tuner's update in its weights, as the papers write it."""
    model, state = copy.deepcopy(model), tuned.state_dict()
    weights = dict(model.named_parameters())
    for path, operation in operations.items():
        assert operation.weights is not None
        if f"{path}.delta" in state:
            weights[str(operation.weights.bias)].data += state[f"{path}.delta"]
            continue
        weight = weights[str(operation.weights.weight)].data
        rank = len(state[f"{path}.A"])
        update = 7.5 / rank * state[f"{path}.B"] @ state[f"{path}.A"].flatten(1)
        update = update.T if operation.weights.layout == "in x out" else update
        weight += update.reshape(weight.shape)
    return model


@pytest.mark.parametrize("rules", ["lora everywhere", "bitfit"])
@pytest.mark.parametrize("name", MODELS)
def test_unbound_equals_changed_weights(name: str, rules: str) -> None:
    make, inputs = MODELS[name]
    model = make().eval().double()
    inputs = in_float64(inputs)
    chosen: Any = LORA_EVERYWHERE if rules == "lora everywhere" else rules
    tuned = fxtune.apply(model, chosen, example_inputs=inputs, dtype=torch.float64).eval()
    awaken(tuned)
    patch = fxtune.inspect(model, chosen, example_inputs=inputs).patch
    assert patch is not None
    operations = {i.path: i.site.operation for i in patch.insertions if i.site.operation is not None}
    assert len(operations) == len(patch.insertions) > 3
    with torch.no_grad():
        expected, found, before = (value(m(**inputs)) for m in (merged(model, tuned, operations), tuned, model))
    assert (before - expected).abs().max() > 0.01 * expected.abs().max()
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


# ---- lora against PEFT's ---------------------------------------------------------------------------------------------


def vit() -> nn.Module:
    return timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=4
    )


PEFTS: dict[str, tuple[Any, list[str], dict[str, str]]] = {
    # how to build the model, PEFT's targets, and which of fxtune's labels each of them is
    "bert": (lambda: build("bert"), ["query", "key", "value"], {"query": "q", "key": "k", "value": "v"}),
    "vit": (vit, ["qkv"], {"qkv": "q_proj_k_proj_v"}),
    "gpt2": (gpt2, ["c_attn"], {"c_attn": "q_proj_k_proj_v"}),
}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("name", PEFTS)
def test_lora_agrees_with_peft(name: str) -> None:
    make, targets, labels = PEFTS[name]
    model = make().eval().double()
    inputs = in_float64(MODELS[name][1])
    settings = {"rank": 3, "alpha": 7.5}
    rules = {"rules": [{"at": "mha", "on": ["q_proj", "k_proj", "v_proj"], "insert": {"lora": settings}}]}
    tuned = fxtune.apply(model, rules, example_inputs=inputs, dtype=torch.float64).eval()
    awaken(tuned)
    config = peft.LoraConfig(
        r=3, lora_alpha=7.5, lora_dropout=0.0, target_modules=targets, fan_in_fan_out=name == "gpt2"
    )
    theirs = peft.get_peft_model(copy.deepcopy(model), config, autocast_adapter_dtype=False).eval()
    ours = of_tuners(tuned)
    pairs = []
    for path, layer in theirs.base_model.model.named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            region, _, end = path.rpartition(".")
            tuner = f"{region}.tuners.mha_{labels[end]}_proj_lora"
            pairs += [(ours[f"{tuner}.A"], layer.lora_A["default"].weight)]
            pairs += [(ours[f"{tuner}.B"], layer.lora_B["default"].weight)]
            assert layer.scaling["default"] == tuned.get_submodule(tuner).factor == 2.5
    assert len(pairs) == len(ours)
    for mine, their in pairs:
        their.data.copy_(mine.data)
    outputs = [value(tuned(**inputs)), value(theirs(**inputs))]
    goal = torch.randn(outputs[0].shape, generator=generator(3), dtype=torch.float64)
    found = torch.autograd.grad((outputs[0] * goal).sum(), [mine for mine, _ in pairs])
    expected = torch.autograd.grad((outputs[1] * goal).sum(), [their for _, their in pairs])
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-12 * outputs[1].abs().max()
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-10 * other.abs().max()
