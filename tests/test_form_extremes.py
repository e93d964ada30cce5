"""Both forms against PEFT, at the extremes, and what can have no second form."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import peft
import pytest
import torch
import transformers
from hypothesis import Phase, given, settings
from torch import nn
from torch.nn import functional as F

import fxtune
from effort import examples
from form_cases import METHODS, REFUSED, check, pair, planted, sentences, small_bert, small_vit
from form_models import FAMILIES, Case, awake
from form_references import rows_in_blocks
from forms import FORMS, Captured, apart, awaken, error, run, tuners

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
