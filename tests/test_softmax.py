"""Tuners in a softmax, on models: what can be watched of them, what is refused and how, what starts as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import families
import fxtune

GATED = {"res_prefix": "mha", "res_prompt": "mha", "vpt": "block", "vpt_shallow": "block"}


def rules(*inserts: tuple[str, Any], **more: Any) -> dict[str, Any]:
    return {"fxtune": 1, "name": "t", "rules": [{"at": at, "insert": insert, **more} for at, insert in inserts]}


def tuned(name: str, tokens: int = 3, **options: Any) -> nn.Module:
    inputs = families.texts(3)
    return fxtune.apply(
        families.build("bert"),
        rules((GATED[name], {name: {"tokens": tokens}})),
        example_inputs=inputs,
        seed=1,
        **options,
    ).eval()


# ---- what can be watched ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GATED)
def test_gates_are_the_prefixes_share_of_every_query(name: str) -> None:
    """λ as the share of the whole softmax that the tuner's keys have, from the weights of eager attention by hand."""
    model = tuned(name)
    inputs = families.texts(3)
    seen: dict[str, tuple[Tensor, ...]] = {}
    watched = {path: module for path, module in model.named_modules() if path in model.gates(**inputs)}
    assert len(watched) == 2
    for path, module in watched.items():
        module.register_forward_pre_hook(lambda _, args, path=path: seen.setdefault(path, args) and None)
    gates = model.gates(**inputs)
    for path, module in watched.items():
        q, k, _, mask = seen[path]
        if name == "res_prefix":
            own, learned = k, module._heads()[0].expand(3, -1, -1, -1)
        else:
            q, own, learned = q[:, :, :-3], k[:, :, :-3], k[:, :, -3:]
        logits = torch.cat([(q @ own.mT / 8**0.5).masked_fill(~mask, -torch.inf), q @ learned.mT / 8**0.5], -1)
        share = logits.softmax(-1)[..., -3:].sum(-1)
        assert gates[path].shape == (3, 4, 9)
        torch.testing.assert_close(gates[path], share)


@pytest.mark.parametrize("name", ["res_prompt", "vpt", "vpt_shallow"])
def test_prompt_rows_are_those_of_the_original_form(name: str) -> None:
    inputs = families.texts(3)
    unbound, original = tuned(name), tuned(name, form="original")
    mine, theirs = unbound.prompt_rows(**inputs), original.prompt_rows(**inputs)
    assert len(mine) == 2 and mine.keys() == theirs.keys()
    for path, rows in mine.items():
        assert rows.shape == (3, 4, 3, 8)
        torch.testing.assert_close(rows, theirs[path])
    # Nobody computes them unasked.
    assert all(getattr(module, "disposable", None) is None for module in unbound.modules())


def test_what_is_not_there_cannot_be_watched() -> None:
    inputs = families.texts(3)
    with pytest.raises(fxtune.PlanError, match="no gates to watch"):
        tuned("res_prefix", form="original").gates(**inputs)
    with pytest.raises(fxtune.PlanError, match="no prompt rows to watch"):
        tuned("res_prefix").prompt_rows(**inputs)


# ---- what leaves a model as it was -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["res_prefix", "res_prompt"])
@pytest.mark.parametrize("family", ["vit", "bert", "unet"])
def test_a_scale_that_starts_at_zero_changes_no_bit(family: str, name: str) -> None:
    model, inputs = families.build(family), families.FAMILIES[family].inputs(2)
    made = fxtune.apply(model, rules(("mha", {name: {"tokens": 3, "scale": "scalar"}})), example_inputs=inputs).eval()
    assert torch.equal(result_of(made, inputs), result_of(model, inputs))


def result_of(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    out = model(**inputs)
    result: Tensor = out if isinstance(out, Tensor) else out[0]
    return result


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_two_tuners_cannot_share_one_softmax() -> None:
    with pytest.raises(fxtune.PlanError, match="how two share one softmax is not defined") as error:
        fxtune.apply(
            families.build("vit"), rules(("mha", {"res_prefix": {}}), ("block", {"vpt": {}})),
            example_inputs=families.images(2),
        )  # fmt: skip
    assert "blocks.0" in str(error.value) and "rules" in str(error.value)


@pytest.mark.parametrize(
    ("at", "insert", "more", "found"),
    [
        ("ffn", "res_prefix", {}, "write `at: mha`"),
        ("ffn", "res_adapter", {}, "reads: output"),
        ("block", "lora", {}, "name operations of the unit"),
    ],
)
def test_a_tuner_without_an_original_form_says_where_it_has_one(at: str, insert: str, more: Any, found: str) -> None:
    with pytest.raises(fxtune.RuleError, match="No original form") as error:
        fxtune.apply(
            families.build("vit"), rules((at, insert), **more), form="original", example_inputs=families.images(2)
        )
    assert found in str(error.value)


class Capped(nn.Module):
    """Self-attention whose logits are soft-capped, or rearranged, or read by somebody else."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.q, self.k, self.v, self.o, self.head = (nn.Linear(16, 16) for _ in range(5))

    def forward(self, x: Tensor) -> Any:
        q, k, v = (p(x).unflatten(-1, (2, 8)).transpose(1, 2) for p in (self.q, self.k, self.v))
        logits = q @ k.transpose(-1, -2) * 8**-0.5
        if self.kind == "capped":
            logits = torch.tanh(logits / 5) * 5
        weights = logits.softmax(-1)
        out = x + self.o((weights @ v).transpose(1, 2).flatten(-2))
        return (self.head(out), weights) if self.kind == "watched" else self.head(out)


@pytest.mark.parametrize(
    ("kind", "found"), [("capped", "changes its logits by `tanh`"), ("watched", "gives its weights")]
)
@pytest.mark.parametrize("form", ["unbound", "original"])
def test_what_lies_outside_the_definitions_is_refused_by_name(kind: str, found: str, form: Any) -> None:
    with pytest.raises(fxtune.PlanError, match=found) as error:
        fxtune.apply(Capped(kind), rules(("mha", "res_prefix")), form=form, example_inputs=(torch.randn(2, 5, 16),))
    assert "the mha at" in str(error.value) and "rotary embedding" in str(error.value)
    made = fxtune.apply(
        Capped("plain"), rules(("mha", "res_prefix")), form=form, example_inputs=(torch.randn(2, 5, 16),)
    )
    assert made(torch.randn(3, 7, 16)).shape == (3, 7, 16)


def test_drop_path_is_no_hindrance_to_rows_that_stay() -> None:
    model = timm_vit(drop_path_rate=0.5)
    inputs = families.images(2)
    for form in ("unbound", "original"):
        made = fxtune.apply(model, rules(("block", "vpt_shallow")), form=form, example_inputs=inputs, seed=0)
        assert made.train()(**inputs).shape == (2, 4)


def timm_vit(**options: Any) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=4, **options)
