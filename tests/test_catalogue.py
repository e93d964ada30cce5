"""The catalogue of methods: each applies where it must, trains, changes nothing else, and comes back from disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import fxtune
from elsewhere import Elsewhere, digests
from families import FAMILIES, awake
from fxtune import rules
from fxtune.tuned import one_capture

SHIPPED = {rule_set.name for rule_set in rules.shipped()} - {"lst"} | {"lst at 1/4"}
SINGLE = {name for name in SHIPPED if name.startswith("single")}
DUAL_OR_TRI = {name for name in SHIPPED if name.startswith(("dual", "tri"))}
BYPASS = {name for name in SHIPPED if name.startswith("res_bypass")}
MAPS = {"full", "linear", "bitfit", "ssf", "lora", "side_tuning", "lst at 1/4", *BYPASS}
MUST_APPLY = {
    "vit": SHIPPED,
    "bert": SHIPPED - {"convpass"},
    "convnext": MAPS | {name for name in SINGLE if not name.endswith("mha")},
    "resnet": MAPS | {name for name in SINGLE if name.endswith("block")},
    "unet": {"full", "adapter", "prefix", "prompt", "lora", "lora on convolutions", "bitfit", "ssf"}
    | DUAL_OR_TRI
    | BYPASS,
}
OWN: dict[str, Any] = {
    "lora on convolutions": {"rules": [{"at": "convolution", "insert": {"lora": {"rank": 4}}}]},
    "lst at 1/4": {"bypass": {"reduce": 4, "temperature": 0.1, "mixed": "side_block"}},
}
"""Rules that are not shipped: a ladder at 1/16 of such small widths would be of two channels."""
SMALLER: dict[str, Any] = {"side_tuning": {"layers": [[16, 3, 2, 1], [32, 3, 2, 1]], "positions": 4}}
"""Settings for small images."""
RATES: dict[Any, float] = {
    "full": 1e-3,
    "ssf": 0.03,
    "bitfit": 0.03,
    "prefix": 0.1,
    "prompt": 0.1,
    "single_prompt_mha": 0.1,
    "vpt_shallow": 0.3,
    "vpt_deep": 0.1,
    "res_bypass_none": 0.3,
    ("resnet", "res_bypass_none"): 0.02,
}
"""A factor, a bias or a row changes little by itself, a lone number of a mix less, and a whole network much. Beside a
ResNet the mixes come with maps between its widths."""
LABELS = {("bert", "res_bypass_none"): [2, 0, 0, 2, 2, 2, 2, 2]}
"""What is to be told where two numbers train: the classes that some mixes raise most. No two numbers could learn the
labels of the other cells: by a grid over both, their loss stays above 0.94 of what it was."""
CELLS = [(family, method) for family, methods in MUST_APPLY.items() for method in sorted(methods)]


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Elsewhere]:
    """Here as there each family is captured once, for all of its methods: nearly all of the time goes there."""
    started = Elsewhere()
    with one_capture():
        yield started
    started.close()


@pytest.mark.parametrize(("family", "method"), CELLS)
def test_every_cell_trains_and_comes_back(family: str, method: str, elsewhere: Elsewhere, tmp_path: Path) -> None:
    """With the head frozen 30 steps lower the loss by a fifth, all that the method trains moves and nothing else does,
    and what a process of another seed loads from disk gives the same bits."""
    model, known = awake(family), FAMILIES[family]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = known.inputs(8)
    tuned = fxtune.apply(
        model, OWN.get(method, method), seed=1, example_inputs=((), inputs), **SMALLER.get(method, {})
    ).train()
    head = tuned.get_submodule(known.head)
    if method != "linear":
        head.requires_grad_(False)
    trains = set(tuned.trainable)
    assert trains, "nothing trains"
    start = {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    optimizer = torch.optim.AdamW(
        [p for p in tuned.parameters() if p.requires_grad], lr=RATES.get((family, method), RATES.get(method, 0.01))
    )
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        output = tuned(**inputs)
        labels = LABELS.get((family, method))
        loss = known.loss(output, 8) if labels is None else F.cross_entropy(output.logits, torch.tensor(labels))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] <= 0.8 * losses[0], (losses[0], losses[-1])
    after = tuned.state_dict()
    assert {name for name, tensor in after.items() if not torch.equal(tensor, start[name])} == trains
    assert all(torch.equal(tensor, before[name]) for name, tensor in tuned.strip().state_dict().items())

    tuned.save(tmp_path)
    assert elsewhere.digests(family, tmp_path) == digests(tuned, family), "not the same bits from disk"
