"""The original form of every method against its unbound form, and both against references by hand, on whole models."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn import functional as F

import fxtune
from effort import examples
from form_cases import METHODS, REFUSED, check, planted
from form_models import FAMILIES, Case
from form_references import block_of, by_heads, fused, more_keys, projected, rows_in_blocks
from forms import FORMS, Captured, apart, run
from fxtune.planning import prompted
from fxtune.rewriting import prompted as rewriting_prompted
from fxtune.tuners import res_prefix
from fxtune.tuners import rows as tuner_rows

A_FAMILY = examples(2, 45)
BY_DESIGN = settings(max_examples=A_FAMILY, phases=[Phase.explicit, Phase.generate])

rewriting_with_rows_of = rewriting_prompted.with_rows_of

SIZED = ("prefix", "prompt", "vpt_deep")


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
            # Without rows a sample of padding only is what a kernel makes of it; the reference's is the fused one.
            if method in SIZED and (many or case.drawn.get("attention") != "eager"):
                # A norm that computes in float32 rounds the gradients of prompts as it likes.
                gradients = 1e-10 if case.float64 else 1e-6
                check(
                    f"{method}, by hand, P = {many}", captured, original, ByHand(captured, original, method), gradients
                )

    agree()
    print(f"{family}: whole models: " + ", ".join(f"{method} {n}" for method, n in counts.items()))


def test_every_method_is_shown_on_twenty_models() -> None:
    for method in METHODS:
        assert A_FAMILY * sum((method, family) not in REFUSED for family in FAMILIES) >= examples(20, 500), method


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
            with rows_in_blocks(self.model, prompts):
                return self.model(**inputs)
        with more_keys([self._keys_and_values(path, tuner) for path, tuner in found]):
            return self.model(**inputs)

    def _keys_and_values(self, path: str, tuner: Any) -> tuple[torch.Tensor, torch.Tensor]:
        heads = self.captured.kv_heads(path)
        if self.method == "prefix":
            return by_heads(tuner.keys, heads), by_heads(tuner.values, heads)
        return projected(self.model.get_submodule(path), tuner.prompts, heads)


# ---- the tests can fail ----------------------------------------------------------------------------------------------


def disagreement(captured: Captured, method: str, form: str = "unbound") -> float:
    """How far a tuned model is from the method by hand; infinite where it does not even run."""
    try:
        tuned = captured.tuned(METHODS[method], form, tokens=2)
        reference = ByHand(captured, tuned, method)
        return max(apart(run(tuned, x), run(reference, x))[0] for x in captured.inputs())
    except (RuntimeError, fxtune.FxtuneError):
        return float("inf")


@pytest.fixture
def vit() -> Captured:
    return planted("timm_vit", depth=2, global_pool="avg", num_heads=3)


@pytest.mark.parametrize("form", FORMS)
def test_a_wrong_join_is_caught(form: str, vit: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that join before the norm, where VPT's would, instead of behind it."""
    assert disagreement(vit, "prompt", form) <= 1e-12
    start = prompted._Planner.start
    monkeypatch.setattr(
        prompted._Planner, "start", lambda self: self.view.values[start(self)].inputs()[0].id, raising=True
    )
    assert disagreement(vit, "prompt", form) > 1e-3


def test_a_lost_cut_is_caught(vit: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disagreement(vit, "vpt_deep", "original") <= 1e-12
    monkeypatch.setattr(rewriting_prompted, "_cut", lambda *_: None)
    assert disagreement(vit, "vpt_deep", "original") > 1e-3


def rotated_rows(changed: torch.Tensor, sequence: torch.Tensor, many: int, axis: int) -> torch.Tensor:
    """Rows that join again behind a rotation, as if they had been turned, too."""
    return rewriting_with_rows_of(changed, sequence.roll(1, -1), many, axis)


@pytest.mark.parametrize("form", FORMS)
def test_rotated_prompts_are_caught(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both forms would have the fault, so they agree with each other: only the method by hand tells."""
    llama = planted("llama", layers=1, attention="sdpa")
    assert disagreement(llama, "prompt", form) <= 1e-12
    monkeypatch.setattr(rewriting_prompted, "with_rows_of", rotated_rows)
    assert disagreement(llama, "prompt", form) > 1e-3


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_a_forgotten_mask_is_caught(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bert = planted("bert", layers=1, attention="sdpa", padded=True)
    module = {"prefix": res_prefix, "prompt": tuner_rows}[method]
    assert disagreement(bert, method) <= 1e-12
    attention = module.unbound_attention
    monkeypatch.setattr(module, "unbound_attention", lambda *a, **k: attention(*a, **{**k, "mask": None}))
    assert disagreement(bert, method) > 1e-3


def test_mask_rows_for_the_wrong_queries_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """In cross-attention on the way of the rows the mask gets rows: behind those of the tokens, not before them."""
    bart = planted("bart", layers=1, attention="sdpa", padded=True)
    assert disagreement(bart, "vpt_deep", "original") <= 1e-12
    monkeypatch.setattr(rewriting_prompted, "with_query_rows", lambda mask, many: F.pad(mask, (0, 0, many, 0), value=1))
    assert disagreement(bart, "vpt_deep", "original") > 1e-3


def test_an_untuned_call_of_a_shared_layer_is_caught() -> None:
    albert = planted("albert", attention="sdpa")
    tuned = albert.tuned("prefix", "unbound", tokens=2)
    reference = ByHand(albert, tuned, "prefix")
    x = albert.inputs()[0]
    assert apart(run(tuned, x), run(reference, x))[0] <= 1e-12
    for path, region in tuned.named_modules():
        calls = [n for n in region.graph.nodes if n.op == "call_module"] if isinstance(region, fx.GraphModule) else []
        again = [n for n in calls if [m.target for m in calls].count(n.target) > 1]
        if again:
            region.add_module("untuned", copy.deepcopy(albert.graph.get_submodule(f"{path}.{again[-1].target}")))
            again[-1].target = "untuned"
            region.recompile()
            break
    else:
        raise AssertionError("no layer is called twice")
    assert apart(run(tuned, x), run(reference, x))[0] > 1e-3
