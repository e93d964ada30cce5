"""One capture for several tuned models: what comes of a copied capture is what comes of a fresh one."""

from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from torch import nn

import families
import fxtune
from fxtune.tuned import observing, one_capture


@pytest.fixture
def captures() -> Iterator[mock.Mock]:
    """Counts the real captures."""
    with mock.patch.object(observing, "capture", wraps=observing.capture) as counted:
        yield counted


def outcome(tuned: fxtune.TunedModel, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Output and gradients in training mode."""
    torch.manual_seed(0)
    output = tuned.train()(**inputs)
    logits = output if isinstance(output, torch.Tensor) else output.logits
    logits.square().sum().backward()
    return [logits.detach(), *(p.grad for p in tuned.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", ["vit", "resnet", "bert"])
def test_a_copied_capture_is_as_good_as_a_fresh_one(name: str, captures: mock.Mock) -> None:
    model, inputs = families.build(name), families.FAMILIES[name].inputs(3)
    before = [(parameter, parameter.clone()) for parameter in model.parameters()]
    rules = ["single_adapter_block", "bitfit"]
    fresh = [fxtune.apply(model, rule, example_inputs=inputs, seed=0) for rule in rules]
    assert captures.call_count == 2
    with one_capture():
        copied = [fxtune.apply(model, rule, example_inputs=inputs, seed=0) for rule in [*rules, *rules]]
    assert captures.call_count == 3
    for one, other in zip([*fresh, *fresh], copied, strict=True):
        assert one.graph_module.code == other.graph_module.code and one.trainable == other.trainable
        assert str(one.report()) == str(other.report())
        one.zero_grad()
        for a, b in zip(outcome(one, inputs), outcome(other, inputs), strict=True):
            assert torch.equal(a, b)
    assert all(torch.equal(parameter, value) and parameter.grad is None for parameter, value in before)


def test_copies_share_frozen_weights_with_the_model_and_nothing_with_each_other() -> None:
    model, inputs = families.build("vit"), families.FAMILIES["vit"].inputs(3)
    with one_capture():
        first, second = (fxtune.apply(model, "dual_res", example_inputs=inputs) for _ in range(2))
    assert first.blocks[0].mlp.fc1.weight.data_ptr() == second.blocks[0].mlp.fc1.weight.data_ptr()
    assert not {id(module) for module in first.modules()} & {id(module) for module in second.modules()}
    assert not {id(parameter) for parameter in first.parameters()} & {
        id(parameter) for parameter in second.parameters()
    }
    with torch.no_grad():
        first.head.weight.add_(1)
    assert torch.equal(second.head.weight, model.head.weight)


def test_another_head_is_another_capture(captures: mock.Mock) -> None:
    model, inputs = families.build("vit"), families.FAMILIES["vit"].inputs(3)
    with one_capture():
        for classes in (None, 7, None, 7):
            tuned = fxtune.apply(model, "dual_res", example_inputs=inputs, num_classes=classes)
            assert tuned(**inputs).shape == (3, classes or 4)
    assert captures.call_count == 2


def test_nothing_is_kept_afterwards(captures: mock.Mock) -> None:
    model: nn.Module = families.build("vit")
    inputs = families.FAMILIES["vit"].inputs(3)
    with one_capture():
        fxtune.apply(model, "dual_res", example_inputs=inputs)
    fxtune.apply(model, "dual_res", example_inputs=inputs)
    assert captures.call_count == 2


def test_other_inputs_are_another_capture(captures: mock.Mock) -> None:
    """Those of `apply`, and those that a tuned model meets."""
    layer, rules = nn.Linear(4, 3), {"rules": [{"at": "linear", "insert": {"lora": {"rank": 2}}}]}
    rows, batches = torch.randn(5, 4), torch.randn(2, 5, 4)
    with one_capture():
        for x in (rows, batches, rows[:3]):
            assert torch.equal(fxtune.apply(layer, rules, example_inputs=(x,))(x), layer(x))
        assert captures.call_count == 2
        tuned = fxtune.apply(layer, rules, example_inputs=(rows,))
        for x in (rows, batches, rows):
            assert torch.equal(tuned(x), layer(x))
    assert captures.call_count == 2
