"""`apply(..., optimize=True)`: the same numbers, and nothing computed for tokens that nobody reads."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fxtune
from fxtune.errors import PlanError, UntunedCallError
from tuned_support import IMAGES, TEXT, bert, vit

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class ReadsLast(nn.Module):
    """A classifier of sequences by their last tokens."""

    def __init__(self, model: nn.Module, many: int) -> None:
        super().__init__()
        self.model, self.head, self.many = model, nn.Linear(32, 5), many

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.head(states[:, -self.many :].sum(1))


def timm_model(name: str, **settings: Any) -> nn.Module:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    return timm.create_model(name, **{**sizes, **settings})


def gpt(many: int) -> nn.Module:
    sizes = {"vocab_size": 50, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 1}
    config = transformers.GPT2Config(**sizes, **tokens, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    return ReadsLast(transformers.GPT2Model(config), many)


def hf_vit() -> nn.Module:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=32, patch_size=8))


def clip_text() -> nn.Module:
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "projection_dim": 16}
    depth = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16}
    tokens = {"bos_token_id": 0, "eos_token_id": 49}
    return transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**sizes, **depth, **tokens))


MASKED = {**TEXT, "attention_mask": torch.tensor([[1] * 8, [1] * 6 + [0] * 2, [1] * 3 + [0] * 5])}

READ_FEW: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "class token": (vit, (IMAGES,)),
    "pre-norm, CLIP's": (lambda: timm_model("vit_base_patch16_clip_224"), (IMAGES,)),
    "qk-norm": (lambda: vit(qk_norm=True), (IMAGES,)),
    "layer scale": (lambda: vit(init_values=0.1), (IMAGES,)),
    "two tokens": (lambda: timm_model("deit_tiny_distilled_patch16_224"), (IMAGES,)),
    "rotary": (lambda: timm_model("eva02_tiny_patch14_224", global_pool="token"), (IMAGES,)),
    "transformers' ViT": (hf_vit, (IMAGES,)),
    "padding mask": (lambda: bert(**NO_DROPOUT), MASKED),
    "eager attention": (lambda: bert(**NO_DROPOUT, attn_implementation="eager"), MASKED),
    "last token": (lambda: gpt(1), MASKED),
    "last two tokens": (lambda: gpt(2), MASKED),
}
READ_ALL: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "mean": (lambda: vit(global_pool="avg", class_token=False, fc_norm=True), (IMAGES,)),
    "mean of all but one": (lambda: vit(global_pool="avg", fc_norm=True), (IMAGES,)),
    "map": (lambda: timm.create_model("test_convnext", num_classes=5), (IMAGES,)),
    "a token found while it runs": (clip_text, {"input_ids": TEXT["input_ids"]}),
}


@dataclass
class Pair:
    """A tuned model without and with the pass, with the same weights."""

    plain: nn.Module
    fast: nn.Module
    inputs: Any

    def outputs(self, inputs: Any = None) -> list[Tensor]:
        return [call(model, self.inputs if inputs is None else inputs) for model in (self.plain, self.fast)]


def call(model: nn.Module, inputs: Any) -> Tensor:
    result = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return result if isinstance(result, Tensor) else result[0]


def pair(
    make: Callable[[], nn.Module], inputs: Any, rules: Any = "tri_res", dtype: torch.dtype = torch.float64
) -> Pair:
    """Both, in eval mode, with tuners' weights of a size that shows in the results."""
    torch.manual_seed(0)
    model = make().to(dtype).eval()
    inputs = tuple(x.to(dtype) for x in inputs) if isinstance(inputs, tuple) else inputs
    settings: dict[str, Any] = {"example_inputs": inputs, "dtype": dtype, "seed": 0}
    plain, fast = (fxtune.apply(model, rules, **settings, optimize=optimize) for optimize in (False, True))
    state = plain.state_dict()
    assert list(state) == list(fast.state_dict())
    for name, weight in state.items():
        if "tuners" in name.split("."):
            state[name] = torch.randn_like(weight) * 0.1
    for tuned in (plain, fast):
        tuned.load_state_dict(state)
    return Pair(plain, fast, inputs)


def gradients(model: nn.Module, output: Tensor) -> list[Tensor]:
    """Of the weights that train, in their order."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    return list(torch.autograd.grad(output.sin().sum(), weights))


def flops(model: nn.Module, inputs: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        call(model, inputs)
    return counter.get_total_flops()


def assert_close(found: Tensor, expected: Tensor, relative: float = 1e-12) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= relative * expected.abs().max()


def same(both: Pair, inputs: Any = None, relative: float = 1e-12) -> None:
    plain, fast = both.outputs(inputs)
    assert_close(fast, plain, relative)
    for found, expected in zip(gradients(both.fast, fast), gradients(both.plain, plain), strict=True):
        assert_close(found, expected, relative)


@pytest.fixture(scope="module")
def class_token() -> Pair:
    return pair(vit, (IMAGES,))


@pytest.mark.parametrize("kind", READ_FEW)
def test_equal_numbers_where_few_tokens_are_read(kind: str) -> None:
    both = pair(*READ_FEW[kind])
    same(both)
    both.plain.train(), both.fast.train()
    same(both)
    assert flops(both.fast, both.inputs) < 0.75 * flops(both.plain, both.inputs)
    assert "computed for" in str(both.fast.report())


@pytest.mark.parametrize("kind", READ_ALL)
def test_nothing_moves_where_all_tokens_are_read(kind: str) -> None:
    both = pair(*READ_ALL[kind], rules={"rules": [{"at": "linear", "insert": {"lora": {"rank": 3}}}]})
    plain, fast = both.outputs()
    assert torch.equal(plain, fast)
    assert [m.code for m in both.fast.modules() if hasattr(m, "code")] == [
        m.code for m in both.plain.modules() if hasattr(m, "code")
    ]
    assert "nothing can be left out" in str(both.fast.report())


def test_the_report_names_what_reads_all_tokens() -> None:
    model = vit(global_pool="avg", class_token=False, fc_norm=True)
    tuned = fxtune.apply(model, "tri_res", example_inputs=(IMAGES,), optimize=True)
    (note,) = tuned.report().notes
    assert note == "optimize: nothing can be left out: `mean` at <root>:mean reads all of its input"


def test_the_report_names_where_and_how_much(class_token: Pair) -> None:
    (note,) = class_token.fast.report().notes
    assert note == "optimize: 19 operations in norm, blocks.1 computed for 1 of 17 places"
    assert class_token.plain.report().notes == ()


@pytest.mark.parametrize(
    ("rules", "form"),
    [
        *((rules, form) for rules in ("prefix", "lora", "bitfit", "vpt_deep") for form in ("unbound", "original")),
        ("adapter", "original"),
        ("single_prompt_ffn", "unbound"),
    ],
)
def test_equal_numbers_with_every_kind_of_tuner(rules: str, form: str) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"example_inputs": (IMAGES.double(),), "dtype": torch.float64, "seed": 0, "form": form}
    model = vit().double()
    plain, fast = (fxtune.apply(model, rules, **settings, optimize=optimize).eval() for optimize in (False, True))
    state = {name: torch.randn_like(w) * 0.1 if "tuners" in name else w for name, w in plain.state_dict().items()}
    plain.load_state_dict(state), fast.load_state_dict(state)
    same(Pair(plain, fast, (IMAGES.double(),)))
    assert flops(fast, (IMAGES.double(),)) < 0.85 * flops(plain, (IMAGES.double(),))


def test_only_what_is_read_costs_anything(class_token: Pair) -> None:
    """The last Block's queries, attention, projection, FFN and tuners, and nothing before it."""
    batch, tokens, dim, heads, size = 3, 17, 32, 2, 10
    linear = 2 * batch * dim * dim  # of one token
    attention = 2 * 2 * batch * heads * tokens * (dim // heads)
    tuner = 2 * 2 * batch * dim * size
    saved = (tokens - 1) * (linear + attention + linear + 8 * linear + 3 * tuner)
    plain, fast = (flops(model, class_token.inputs) for model in (class_token.plain, class_token.fast))
    assert plain - fast == saved


def test_float32() -> None:
    same(pair(vit, (IMAGES,), dtype=torch.float32), relative=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_other_batch_sizes(class_token: Pair, batch: int) -> None:
    same(class_token, (torch.randn(batch, 3, 32, 32, dtype=torch.float64),))


@pytest.mark.parametrize("kind", ["padding mask", "last token"])
def test_other_lengths(kind: str) -> None:
    both = pair(*READ_FEW[kind])
    for length in (2, 5, 13):
        ids = torch.randint(0, 50, (4, length))
        same(both, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def test_other_inputs_are_captured_and_optimized_too() -> None:
    both = pair(lambda: bert(**NO_DROPOUT), MASKED)
    alone = {"input_ids": MASKED["input_ids"]}
    same(both, alone)
    assert flops(both.fast, alone) < 0.75 * flops(both.plain, alone)


def test_methods_that_return_all_tokens_still_do(class_token: Pair) -> None:
    plain, fast = (model.forward_features(*class_token.inputs) for model in (class_token.plain, class_token.fast))
    assert plain.shape == (3, 17, 32)
    assert torch.equal(plain, fast)


def test_copies_and_pickles(class_token: Pair) -> None:
    for twin in (copy.deepcopy(class_token.fast), pickle.loads(pickle.dumps(class_token.fast))):
        same(Pair(class_token.plain, twin, class_token.inputs))
        assert flops(twin, class_token.inputs) == flops(class_token.fast, class_token.inputs)


def test_compiles_whole(class_token: Pair) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(class_token.fast, backend="aot_eager", fullgraph=True)
    same(Pair(class_token.plain, compiled, class_token.inputs))


def test_checkpointing() -> None:
    both = pair(vit, (IMAGES,))
    both.plain.train(), both.fast.train()
    both.fast.activation_checkpointing_enable()
    same(both)


def test_weights_and_their_order_are_the_models_own(class_token: Pair) -> None:
    original = class_token.fast.strip()
    own = [name for name in class_token.fast.state_dict() if "tuners" not in name.split(".")]
    assert own == list(original.state_dict())
    here, there = (model.get_parameter("blocks.1.attn.qkv.weight") for model in (class_token.fast, original))
    assert here.data_ptr() == there.data_ptr()
    names = [name for name, _ in class_token.plain.named_parameters()]
    assert names == [name for name, _ in class_token.fast.named_parameters()]


def test_the_random_generator_is_left_alone() -> None:
    states = []
    for optimize in (False, True):
        torch.manual_seed(3)
        fxtune.apply(bert(), "tri_res", example_inputs=TEXT, seed=0, optimize=optimize)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_dropout_acts_on_what_is_read() -> None:
    """The noise is drawn for the token alone: of the same kind, though not the same numbers."""
    both = pair(lambda: vit(proj_drop_rate=0.5), (IMAGES,))
    assert_close(*both.outputs())
    both.plain.train(), both.fast.train()
    images = (IMAGES[:1].double().expand(2000, -1, -1, -1),)
    torch.manual_seed(0)
    with torch.no_grad():
        plain, fast = both.outputs(images)
    torch.testing.assert_close(fast.mean(0), plain.mean(0), rtol=0, atol=0.02)
    torch.testing.assert_close(fast.std(0), plain.std(0), rtol=0.1, atol=0)


def test_hooks_see_the_token_alone() -> None:
    tuned = fxtune.apply(vit(), "tri_res", example_inputs=(IMAGES,), optimize=True)
    seen: list[Any] = []
    tuned.blocks[1].register_forward_hook(lambda module, args, output: seen.append((args[0].shape, output.shape)))
    tuned(IMAGES)
    assert seen == [((3, 17, 32), (3, 1, 32))]
    with pytest.raises(UntunedCallError, match="would never run"):
        tuned.blocks[1].attn.qkv.register_forward_hook(lambda *_: None)


def test_a_module_with_a_hook_is_called() -> None:
    model = vit()
    calls: list[Any] = []
    model.blocks[1].attn.qkv.register_forward_hook(lambda module, args, output: calls.append(output.shape))
    tuned = fxtune.apply(model, "tri_res", example_inputs=(IMAGES,), optimize=True)
    calls.clear()
    tuned(IMAGES)
    assert calls == [(3, 17, 96)]


def test_a_tuner_that_mixes_tokens_gets_them_all() -> None:
    gate = {"rules": [{"at": "ffn", "insert": {"res_adapter": {"dim": 4, "scale": "gate"}}}]}
    same(pair(vit, (IMAGES,), gate))


def test_optimize_is_a_flag() -> None:
    with pytest.raises(PlanError, match="optimize='yes'"):
        fxtune.apply(vit(), "tri_res", example_inputs=(IMAGES,), optimize="yes")  # type: ignore[arg-type]
