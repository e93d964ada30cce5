"""The original form of every method against its unbound form, and both against references by hand, on whole models."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from typing import Any

import peft
import pytest
import torch
import transformers
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import fx, nn
from torch.nn import functional as F

import fxtune
from effort import examples
from form_models import FAMILIES, Case, awake
from form_references import block_of, by_heads, fused, more_keys, projected, rows_in_blocks
from forms import FORMS, Captured, apart, awaken, error, run, tuners
from fxtune.planning import prompted
from fxtune.rewriting import prompted as rewriting_prompted
from fxtune.tuners import res_prefix
from fxtune.tuners import rows as tuner_rows

A_FAMILY = examples(2, 45)
BY_DESIGN = settings(max_examples=A_FAMILY, phases=[Phase.explicit, Phase.generate])

QUICK = settings(max_examples=500, phases=[Phase.generate])

METHODS: dict[str, Any] = {
    "prefix": "prefix",
    "prompt": "prompt",
    "vpt_deep": {"rules": [{"at": "block", "insert": "vpt"}]},
    "adapter": "adapter_houlsby",
    "lora": "lora",
    "bitfit": "bitfit",
}
rewriting_with_rows_of = rewriting_prompted.with_rows_of

SIZED = ("prefix", "prompt", "vpt_deep")

REFUSED: dict[tuple[str, str], str] = {
    ("vpt_deep", "swin"): "not batch x tokens x channels",  # windows of a grid
    ("vpt_deep", "unet"): "it has no attention",  # its first Block is a resnet block
    ("bitfit", "llama"): "no rule of bitfit matched anything",  # no biases
    ("bitfit", "t5"): "no rule of bitfit matched anything",
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


def check(what: str, captured: Captured, ours: nn.Module, theirs: nn.Module, tolerance: float = 1e-10) -> None:
    """Outputs to 1e-12, gradients to `tolerance`, on every input of the model."""
    for inputs in captured.inputs():
        outputs, gradients = apart(run(ours, inputs), run(theirs, inputs))
        shapes = {name: tuple(x.shape) for name, x in inputs.items() if isinstance(x, torch.Tensor)}
        assert outputs <= 1e-12 and gradients <= tolerance, (what, captured.case, shapes, outputs, gradients)


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


# ---- PEFT -----------------------------------------------------------------------------------------------------------

SMALL = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
DECODERS = {
    "GPT-2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
        )
    ),
    "Llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, num_key_value_heads=2)),
    "Qwen3": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=12)
    ),
}


@pytest.mark.filterwarnings("ignore:.*:FutureWarning")  # PEFT asks transformers for names of yesterday
@pytest.mark.parametrize("form", ["unbound", "original"])
@pytest.mark.parametrize("name", DECODERS)
def test_prefix_agrees_with_pefts_at_its_positions(name: str, form: Any) -> None:
    """PEFT hands its prefix to the model as the keys and values of P tokens past: positions begin at P."""
    model, many = awake(DECODERS[name]()), 3
    ids = torch.randint(0, 40, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    ours = {**inputs, "position_ids": torch.arange(many, many + 7).expand(2, 7), "use_cache": False}
    tuned = fxtune.apply(model, "prefix", tokens=many, example_inputs=ours, form=form).eval().double()
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=many)
    theirs = peft.get_peft_model(copy.deepcopy(model), config).eval().double()
    awaken(tuned)
    rows = list(tuners(tuned).values())  # keys and values, layer by layer
    with torch.no_grad():
        theirs.get_parameter("prompt_encoder.default.embedding.weight").copy_(torch.cat(rows, 1))
        expected = theirs(**inputs).logits
        assert error(tuned(**ours).logits, expected) <= 1e-12
        assert error(model.double()(**ours).logits, expected) > 1e-3
        unshifted = {**ours, "position_ids": torch.arange(7).expand(2, 7)}
        assert error(tuned(**unshifted).logits, expected) > 1e-3


# ---- extremes --------------------------------------------------------------------------------------------------------


def small_vit(**changes: Any) -> nn.Module:
    drawn = {"embed_dim": 16, "depth": 2, "num_heads": 2, "init_values": 0.5, "qk_norm": True, **changes}
    return awake(VisionTransformer(img_size=32, patch_size=16, num_classes=3, **drawn))


def test_a_sequence_first_model_is_refused_rows() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    with pytest.raises(fxtune.PlanError, match="tokens x batch x channels"):
        fxtune.apply(model, "prompt", example_inputs={"src": torch.randn(7, 2, 16)})


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_see_a_context_that_is_hidden_from_the_tokens(attention: str) -> None:
    bart = planted("bart", layers=2, attention=attention, padded=True)
    unbound, original = bart.both(METHODS["vpt_deep"], tokens=3)
    inputs = bart.inputs()[0]
    inputs["attention_mask"][1] = 0
    outputs, gradients = apart(run(original, inputs), run(unbound, inputs))  # infinite where one is not finite
    assert outputs <= 1e-12 and gradients <= 1e-10


def test_rows_that_stay_pass_a_context_as_queries() -> None:
    bart = planted("bart", layers=2, attention="sdpa", padded=True)
    insert = {"at": "block", "where": {"path": "decoder.*"}, "insert": "vpt_shallow"}
    unbound, original = bart.both({"rules": [insert]}, tokens=3)
    check("vpt_shallow, forms", bart, unbound, original)
    model, (rows,) = bart.case.model.double(), tuners(original).values()
    for inputs in bart.inputs():
        with rows_in_blocks(model, dict.fromkeys(("decoder.layers.0", "decoder.layers.1"), rows), stay=True):
            expected = model(**inputs).last_hidden_state.detach()
        assert error(run(original, inputs).outputs[0], expected) <= 1e-12
        assert error(model(**inputs).last_hidden_state.detach(), expected) > 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("form", FORMS)
def test_rows_that_stay_see_no_padding(form: str, attention: str) -> None:
    """A sentence gives the same whatever padding stands behind it."""
    bert = planted("bert", layers=2, attention=attention, padded=True, embedded=False)
    tuned = bert.tuned("vpt_shallow", form, tokens=3)
    short = {"input_ids": torch.arange(2, 10).view(2, 4), "attention_mask": torch.ones(2, 4, dtype=torch.long)}
    long = {name: F.pad(x, (0, 3), value=name == "input_ids") for name, x in short.items()}
    with torch.no_grad():
        assert error(tuned(**long).last_hidden_state[:, :4], tuned(**short).last_hidden_state) <= 1e-12
        seen = {**long, "attention_mask": torch.ones_like(long["attention_mask"])}
        assert error(tuned(**seen).last_hidden_state[:, :4], tuned(**short).last_hidden_state) > 1e-3


class Decoder(nn.Module):
    """A Block with cross-attention whose mask is a buffer, or whose logits have batch and heads in one axis."""

    def __init__(self, merged: bool) -> None:
        super().__init__()
        self.merged = merged
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.maps = nn.ModuleList(nn.Linear(8, 8) for _ in range(8))
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.register_buffer("mask", torch.ones(5, 6).tril().bool())

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        h = self.norms[0](x)
        q, k, v = (self.heads(i, h) for i in range(3))
        x = x + self.maps[3](self.tokens(F.scaled_dot_product_attention(q, k, v)))
        q, k, v = self.heads(4, self.norms[1](x)), self.heads(5, context), self.heads(6, context)
        if self.merged:
            logits = q @ k.mT / 2 + self.mask.to(x.dtype)
            out = logits.reshape(-1, 5, 6).softmax(-1).reshape(-1, 2, 5, 6) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        x = x + self.maps[7](self.tokens(out))
        result: torch.Tensor = x + self.down(F.gelu(self.up(self.norms[2](x))))
        return result

    def heads(self, number: int, x: torch.Tensor) -> torch.Tensor:
        return self.maps[number](x).unflatten(-1, (2, 4)).transpose(1, 2)

    def tokens(self, heads: torch.Tensor) -> torch.Tensor:
        return heads.transpose(1, 2).flatten(2)


@pytest.mark.parametrize(("merged", "found"), [(False, "a mask of its own"), (True, "reshapes its logits")])
def test_a_context_whose_mask_cannot_get_rows_is_refused(merged: bool, found: str) -> None:
    inputs = {"x": torch.randn(2, 5, 8), "context": torch.randn(2, 6, 8)}
    fxtune.apply(awake(Decoder(merged)), METHODS["vpt_deep"], example_inputs=inputs)
    with pytest.raises(fxtune.PlanError, match=found):
        fxtune.apply(awake(Decoder(merged)), METHODS["vpt_deep"], example_inputs=inputs, form="original")


def test_rows_leave_the_softmax_of_a_masked_context_alone() -> None:
    """In the original form they pass through it as queries, whose mask must have their rows."""
    bart = planted("bart", layers=1, attention="eager", padded=True)
    vpt = {"at": "block", "insert": "vpt"}
    prefix = {"at": "mha", "where": {"path": "decoder.layers.*.encoder_attn"}, "insert": "res_prefix"}
    for rules in ([vpt, prefix], [prefix, vpt]):
        assert tuners(bart.tuned({"rules": rules}, "unbound"))
        with pytest.raises(fxtune.PlanError, match="does already"):
            bart.tuned({"rules": rules}, "original")


class LooksUp(nn.Module):
    """Attention whose keys are shifted by entries of a table: by one for all tokens, or by what each token is."""

    def __init__(self, by_token: bool) -> None:
        super().__init__()
        self.by_token = by_token
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.table = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (projection(x).unflatten(-1, (2, 4)).transpose(1, 2) for projection in (self.q, self.k, self.v))
        index = k.clamp(0, 2).to(torch.long) if self.by_token else torch.tensor([2])
        k = k + self.table[index, 0] if self.by_token else k[:, :, :, [3, 2, 1, 0]] + self.table[index]
        out: torch.Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


def test_a_part_taken_by_what_a_token_is_is_refused_rows() -> None:
    inputs = {"x": torch.randn(2, 5, 8)}
    unbound, original = (tuned.double() for tuned in pair(awake(LooksUp(False)), "prompt", inputs, tokens=3))
    outputs, gradients = apart(run(unbound, x := {"x": inputs["x"].double()}), run(original, x))
    assert outputs <= 1e-12 and gradients <= 1e-10
    with pytest.raises(fxtune.PlanError, match="numbers that it computes"):
        fxtune.apply(awake(LooksUp(True)), "prompt", example_inputs=inputs)


@pytest.mark.parametrize("form", FORMS)
def test_logits_that_the_model_overwrites_are_gone(form: Any) -> None:
    """A bias added in place: the written-out attention must not be computed beside the tuner's."""
    config = transformers.MPNetConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    model = awake(transformers.MPNetModel(config))
    tuned = fxtune.apply(model, "prompt", example_inputs=sentences(2, 6), form=form)
    assert "softmax" not in tuned.graph_module.get_submodule("encoder.layer.0.attention.attn").code
    assert tuned(**sentences(3, 4)).last_hidden_state.isfinite().all()


PROMPT = {"at": "mha", "insert": {"res_prompt": {"tokens": 3}}}
VPT = {"at": "block", "insert": {"vpt": {"tokens": 3}}}
LORA = {"at": "mha", "on": ["q_proj", "k_proj", "v_proj"], "insert": {"lora": {"rank": 2}}}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tuner_beside_an_operation_reads_the_rows_that_the_operation_reads(family: str) -> None:
    """Prompts join where LoRA stands, whichever came first: both forms compute ``(W + BA) [x; x_pro]``."""

    @settings(max_examples=examples(1, 20), phases=[Phase.generate])
    @given(FAMILIES[family])
    def agree(case: Case) -> None:
        captured = Captured(case)
        for rows in (PROMPT, *([] if ("vpt_deep", family) in REFUSED else [VPT])):
            for rules in ([rows, LORA], [LORA, rows]):
                check(f"{[rule['at'] for rule in rules]}", captured, *captured.both({"rules": rules}))

    agree()


def small_bert(**changes: Any) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **changes,
    )  # fmt: skip
    return awake(transformers.BertModel(config))


def sentences(batch: int, length: int, **more: Any) -> dict[str, Any]:
    ids = torch.randint(0, 40, (batch, length), generator=torch.Generator().manual_seed(length))
    mask = torch.ones_like(ids)
    mask[0, (length + 1) // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask, **more}


def pair(model: nn.Module, rule: Any, inputs: Any, **settings: Any) -> tuple[Any, Any]:
    """Tuned models of both forms with the same drawn weights, in eval mode."""
    unbound, original = (
        fxtune.apply(model, rule, example_inputs=inputs, seed=1, form=form, **settings).eval()
        for form in ("unbound", "original")
    )
    awaken(unbound)
    original.load_state_dict(unbound.state_dict())
    return unbound, original


IN_SOFTMAX = ["prefix", "prompt", "vpt_deep"]


@pytest.mark.parametrize("rule", IN_SOFTMAX)
def test_without_tokens_a_tuner_changes_nothing(rule: str) -> None:
    model, x = small_vit(), {"x": torch.randn(2, 3, 32, 32)}
    for tuned in pair(model, rule, x, tokens=0):
        torch.testing.assert_close(tuned(**x), model(**x))


@pytest.mark.parametrize("rule", IN_SOFTMAX)
def test_copies_casts_and_further_inputs_keep_both_forms_alike(rule: str) -> None:
    """deepcopy, pickle, `.to(dtype)`, `train()` without dropout, checkpointing, other optional inputs and sizes."""
    unbound, original = pair(small_bert(), rule, sentences(2, 6), tokens=3)
    unbound, original = unbound.to(torch.float64), original.to(torch.float64)
    inputs = [sentences(3, 9), sentences(1, 4), sentences(2, 1), {"input_ids": sentences(2, 5)["input_ids"]}]
    inputs += [sentences(2, 5, token_type_ids=torch.ones(2, 5, dtype=torch.long))]
    expected = [run(original, x) for x in inputs]
    copies: list[nn.Module] = [unbound, copy.deepcopy(unbound), pickle.loads(pickle.dumps(unbound)), unbound.train()]
    for tuned in copies:
        for x, reference in zip(inputs, expected, strict=True):
            outputs, gradients = apart(run(tuned, x), reference)
            assert outputs <= 1e-12 and gradients <= 1e-10, (type(tuned), {k: v.shape for k, v in x.items()})
    unbound.gradient_checkpointing_enable()
    assert max(apart(run(unbound, inputs[0]), expected[0])) <= 1e-10


@pytest.mark.parametrize("rule", IN_SOFTMAX)
def test_an_unbound_model_compiles_as_one_graph(rule: str) -> None:
    unbound, _ = pair(small_vit(depth=1), rule, {"x": torch.randn(2, 3, 32, 32)}, tokens=3)
    x = {"x": torch.randn(3, 3, 32, 32)}
    expected = run(unbound, x)
    compiled: Any = torch.compile(unbound, backend="aot_eager", fullgraph=True)
    total = (compiled(**x) * torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).sum()
    total.backward()
    for weight, gradient in zip(tuners(unbound).values(), expected.gradients.values(), strict=False):
        torch.testing.assert_close(weight.grad, gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", IN_SOFTMAX)
def test_the_unbound_form_rounds_no_worse_than_twice_the_original(rule: str, dtype: torch.dtype) -> None:
    squares = {"unbound": 0.0, "original": 0.0}
    for seed in range(examples(4, 40)):
        model = awake(small_vit(depth=1), seed).to(dtype)
        x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed)).to(dtype)
        unbound, original = pair(model, rule, {"x": x}, tokens=3)
        with torch.no_grad():
            results = {"unbound": unbound(x=x).double(), "original": original(x=x).double()}
            truth = original.double()(x=x.double())
        for form, result in results.items():
            squares[form] += float((result - truth).square().mean())
    assert 0 < squares["unbound"] <= 4 * squares["original"]


# ---- the tests can fail ----------------------------------------------------------------------------------------------


def disagreement(captured: Captured, method: str, form: str = "unbound") -> float:
    """How far a tuned model is from the method by hand; infinite where it does not even run."""
    try:
        tuned = captured.tuned(METHODS[method], form, tokens=2)
        reference = ByHand(captured, tuned, method)
        return max(apart(run(tuned, x), run(reference, x))[0] for x in captured.inputs())
    except (RuntimeError, fxtune.FxtuneError):
        return float("inf")


def planted(family: str, **wanted: Any) -> Captured:
    """The captured model of a family that was drawn with these features."""
    case = find(FAMILIES[family], lambda case: all(case.drawn.get(k) == v for k, v in wanted.items()), settings=QUICK)
    return Captured(case)


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
