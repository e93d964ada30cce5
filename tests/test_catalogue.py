"""The catalogue of methods: each applies where it must, trains, changes nothing else, and comes back from disk."""

from pathlib import Path

import pytest
import torch
from torch import nn

import fxtune
from families import FAMILIES, build

EVERYWHERE = ["full", "linear", "bitfit", "ssf", "res_bypass"]
TOKENS = ["adapter", "prefix", "lora", "dual_res", "tri_res"]
MUST_APPLY = {
    "vit": [*EVERYWHERE, *TOKENS, "adapter_houlsby", "vpt_shallow", "vpt_deep", "adaptformer", "mam_adapter", "noah"],
    "bert": [*EVERYWHERE, *TOKENS, "adapter_houlsby", "vpt_shallow", "vpt_deep", "adaptformer", "mam_adapter", "noah"],
    "convnext": [*EVERYWHERE, "single_adapter_block"],
    "resnet": [*EVERYWHERE, "single_adapter_block"],
    "unet": ["full", "bitfit", "ssf", "res_bypass", *TOKENS, "prompt"],
}
RATES = {"full": 1e-3, "ssf": 0.03, "bitfit": 0.03, "prefix": 0.1, "prompt": 0.1, "vpt_shallow": 0.3, "vpt_deep": 0.1}
"""A factor, a bias or a row changes little by itself, and a whole network much."""
CELLS = [(family, method) for family, methods in MUST_APPLY.items() for method in methods]


@pytest.mark.parametrize(("family", "method"), CELLS)
def test_every_cell_trains_and_comes_back(family: str, method: str, tmp_path: Path) -> None:
    """With the head frozen 30 steps lower the loss by a fifth, all that the method trains moves and nothing else does,
    and what is loaded from disk gives the same bits."""
    model, known = awake(family), FAMILIES[family]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = known.inputs(8)
    tuned = fxtune.apply(model, method, seed=1, example_inputs=((), inputs)).train()
    head = tuned.get_submodule(known.head)
    if method != "linear":
        head.requires_grad_(False)
    trains = set(tuned.trainable)
    assert trains, "nothing trains"
    start = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=RATES.get(method, 0.01))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = known.loss(tuned(**inputs), 8)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] <= 0.8 * losses[0], (losses[0], losses[-1])
    after = tuned.state_dict()
    assert {name for name, tensor in after.items() if not torch.equal(tensor, start[name])} == trains
    assert all(torch.equal(tensor, before[name]) for name, tensor in tuned.strip().state_dict().items())

    tuned.save(tmp_path)
    loaded = fxtune.load(model, tmp_path)
    assert same(loaded, tuned, inputs), "not the same bits from disk"


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


@torch.no_grad()
def same(one: nn.Module, other: nn.Module, inputs: dict[str, torch.Tensor]) -> bool:
    a, b = (torch.utils._pytree.tree_leaves(model.eval()(**inputs)) for model in (one, other))
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True) if isinstance(x, torch.Tensor))
