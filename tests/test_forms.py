"""The original form of every method against its unbound form, and both against references by hand, on whole models."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

import fxtune
from effort import examples
from form_models import FAMILIES, Case
from form_references import block_of, by_heads, fused, more_keys, projected, rows_in_blocks
from forms import Captured, Run, apart, run

BY_DESIGN = settings(max_examples=examples(2, 40), phases=[Phase.explicit, Phase.generate])

METHODS: dict[str, Any] = {
    "prefix": "prefix",
    "prompt": "prompt",
    "vpt_deep": {"rules": [{"at": "block", "insert": "vpt"}]},
    "adapter": "adapter_houlsby",
    "lora": "lora",
    "bitfit": "bitfit",
}
SIZED = ("prefix", "prompt", "vpt_deep")

CAUSAL = ("gpt2", "llama", "qwen3")

REFUSED: dict[tuple[str, str], str] = {
    ("vpt_deep", "swin"): "not batch x tokens x channels",  # windows of a grid
    ("vpt_deep", "unet"): "it has no attention",  # its first Block is a resnet block
    ("vpt_deep", "bart"): "made for the tokens alone",  # in the original form, on the way through cross-attention
    ("lora", "eva"): "weights are computed",  # the bias of the fused projection is put together of three
    ("bitfit", "llama"): "no rule of bitfit matched anything",  # no biases
    ("bitfit", "qwen3"): "no rule of bitfit matched anything",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_both_forms_agree_with_each_other_and_with_the_method_by_hand(family: str) -> None:
    counts: Counter[str] = Counter()

    @BY_DESIGN
    @given(FAMILIES[family], st.sampled_from([2, 1, 7, 23, 0]))
    def agree(case: Case, many: int) -> None:
        captured = Captured(case)
        for method, rule in METHODS.items():
            own = {"tokens": many} if method in SIZED else {}
            if (method, family) in REFUSED:
                with pytest.raises(fxtune.FxtuneError, match=REFUSED[method, family]):
                    captured.both(rule, **own)
                continue
            unbound, original = captured.both(rule, **own)
            check(f"{method}, forms, P = {many}", captured, unbound, original)
            counts[method] += 1
            if method in SIZED:
                check(f"{method}, by hand, P = {many}", captured, original, ByHand(captured, original, method))

    agree()
    print(f"{family}: whole models: " + ", ".join(f"{method} {n}" for method, n in counts.items()))


def test_every_method_is_shown_on_twenty_models() -> None:
    for method in METHODS:
        assert 2 * sum((method, family) not in REFUSED for family in FAMILIES) >= 20, method


def check(what: str, captured: Captured, ours: nn.Module, theirs: nn.Module) -> None:
    """Outputs to 1e-12, gradients to 1e-10, on every input of the model."""
    for inputs in captured.inputs():
        outputs, gradients = apart(run(ours, inputs), run(theirs, inputs))
        shapes = {name: tuple(x.shape) for name, x in inputs.items() if isinstance(x, torch.Tensor)}
        assert outputs <= 1e-12 and gradients <= 1e-10, (what, captured.case, shapes, outputs, gradients)


class ByHand(nn.Module):
    """A method on the eager model, with the very weights that a tuned one holds under `tuners`."""

    def __init__(self, captured: Captured, tuned: nn.Module, method: str) -> None:
        super().__init__()
        self.model = fused(copy.deepcopy(captured.case.model).double())
        self.captured, self.method = captured, method
        self.tuners = nn.ModuleDict()
        self.paths: dict[str, str] = {}
        for path, module in tuned.named_modules():
            region, found, label = path.rpartition(".tuners.")
            if found and "." not in label:
                self.paths[label := f"{len(self.paths)}"] = region
                self.tuners[label] = module

    def forward(self, **inputs: Any) -> Any:
        found = [(self.paths[label], tuner) for label, tuner in self.tuners.items()]
        if self.method == "vpt_deep":
            prompts = {block_of(path): tuner.prompts for path, tuner in found}
            with rows_in_blocks(self.model, prompts, causal=self.captured.case.name in CAUSAL):
                return self.model(**inputs)
        with more_keys([self._keys_and_values(path, tuner) for path, tuner in found]):
            return self.model(**inputs)

    def _keys_and_values(self, path: str, tuner: Any) -> tuple[torch.Tensor, torch.Tensor]:
        heads = self.captured.kv_heads(path)
        if self.method == "prefix":
            return by_heads(tuner.keys, heads), by_heads(tuner.values, heads)
        return projected(self.model.get_submodule(path), tuner.prompts, heads)
