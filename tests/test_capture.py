"""What a captured model keeps and can do: state, modes, dtypes, copies, contexts, calls, compilation."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from timm.layers import PatchDropout
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import capture_checks as checks
import capture_models as models
from fxtune.errors import InputError
from fxtune.tracing import Region, capture


@pytest.fixture(scope="module")
def bert() -> models.Example:
    return models.bert("eager")


@pytest.fixture(scope="module")
def captured_bert(bert: models.Example) -> Region:
    return capture(bert.model, bert.first)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


SPELLINGS = {
    "functional dropout": models.FunctionalDropout,
    "dropout inside attention": models.DropoutInAttention,
    "functional batch norm": models.FunctionalBatchNorm,
    "functional drop path": models.FunctionalDropPath,
    "noise in training": models.TrainingNoise,
    "scaling in evaluation": models.EvaluationScale,
    "branch in training": models.TrainingBranch,
    "layer drop": models.AuxiliaryHead,
    "constants": models.LiftedConstants,
    "in-place": models.InPlace,
    "autocast": models.AutocastRegion,
    "no grad": models.NoGradRegion,
    "tied": models.Tied,
    "tied used functionally": models.TiedFunctional,
    "shared layer": models.SharedLayer,
    "layer that differs by call": models.DifferingCalls,
    "shared at two paths": models.TwoPaths,
    "module that interleaves": models.CalledByCallback,
    "child called self": models.ChildCalledSelf,
    "unused children": models.UnusedChildren,
    "structured": models.Structured,
    "recurrent": models.Recurrent,
    "torch attention": models.TorchAttention,
    "computed sizes": models.ComputedSizes,
    "leaf with a size": models.SizeLeaf,
    "nothing to do": models.Nothing,
    "input returned": models.InputReturned,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spelling_equals_eager(spelling: str) -> None:
    model = SPELLINGS[spelling]()
    captured = capture(model, ((torch.randn(2, 6, 8),), {}))
    checks.assert_state_kept(captured, model)
    lengths = (6, 6) if spelling == "recurrent" else (6, 5)  # the exporter unrolls an LSTM
    for shape in zip((3, 1), lengths, (8, 8), strict=True):
        checks.assert_equal_to_eager(captured, model, (torch.randn(shape),), {})


def test_regions_lie_at_the_modules_paths(bert: models.Example, captured_bert: Region) -> None:
    regions = {name for name, module in captured_bert.named_modules() if isinstance(module, Region)}
    called = {
        name for name, module in bert.model.named_modules() if module._modules and not isinstance(module, nn.ModuleList)
    }
    assert called <= regions
    leaf = "encoder.layer.0.attention.self.query"
    assert captured_bert.get_submodule(leaf) is bert.model.get_submodule(leaf)


def test_graphs_carry_what_is_read_downstream(captured_bert: Region) -> None:
    for path, region in captured_bert.named_modules():
        if not isinstance(region, Region):
            continue
        for node in region.graph.nodes:
            if node.op == "call_module":
                child = region.get_submodule(str(node.target))
                assert isinstance(child, Region) or node.meta["body"].nodes, (path, node)
            if node.op != "output" and node.target not in (getattr, torch.finfo):
                assert node.meta["val"] is not None, (path, node)


def test_code_is_readable(captured_bert: Region) -> None:
    layer = captured_bert.get_submodule("encoder.layer.0")
    assert isinstance(layer, Region)
    code = layer.code
    assert "attention = self.attention(hidden_states, where)" in code
    assert "return output" in code


@pytest.mark.parametrize("copied", ["deepcopy", "pickle"])
def test_copies_stand_alone(copied: str, bert: models.Example, captured_bert: Region) -> None:
    twin = copy.deepcopy(captured_bert) if copied == "deepcopy" else pickle.loads(pickle.dumps(captured_bert))
    assert isinstance(twin, Region)
    assert list(twin.state_dict()) == list(captured_bert.state_dict())
    ours, theirs = set(map(id, twin.parameters())), set(map(id, captured_bert.parameters()))
    assert not ours & theirs
    for training in (True, False):
        expected = checks.run(bert.model, *bert.second, training=training)
        found = checks.run(twin, *bert.second, training=training)
        checks.assert_same(found, expected, copied)
    assert {n.name for n in twin.graph.nodes} == {n.name for n in captured_bert.graph.nodes}


def test_pickle_keeps_bodies_and_tied_weights() -> None:
    captured = pickle.loads(pickle.dumps(capture(models.Tied(), (torch.randn(2, 6, 8),))))
    assert captured.a.weight is captured.b.weight
    leaves = [node for node in captured.graph.nodes if node.op == "call_module"]
    assert leaves and all("body" in node.meta for node in leaves)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_other_dtype(attention: str) -> None:
    example = models.bert(attention)
    captured = capture(example.model, example.first)
    model, captured = copy.deepcopy(example.model).to(torch.bfloat16), copy.deepcopy(captured).to(torch.bfloat16)
    for training in (True, False):
        expected = checks.run(model, *example.second, training=training)
        checks.assert_same(checks.run(captured, *example.second, training=training), expected, "bfloat16")


def test_constants_keep_their_dtype() -> None:
    model = models.LiftedConstants()
    captured = capture(model, (torch.randn(2, 6, 8),)).to(torch.bfloat16)
    x = torch.randn(3, 6, 8, dtype=torch.bfloat16)
    assert torch.equal(captured(x), model.to(torch.bfloat16)(x))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_autocast(attention: str) -> None:
    example = models.bert(attention)
    captured = capture(example.model, example.first)
    for training in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            expected = checks.run(example.model, *example.second, training=training)
            found = checks.run(captured, *example.second, training=training, names=example.model)
        checks.assert_same(found, expected, "autocast")


def test_moving_moves_the_original_too() -> None:
    model = models.Tied()
    captured = capture(model, (torch.randn(2, 6, 8),))
    captured.to(torch.float64)
    assert all(p.dtype == torch.float64 for p in model.parameters())
    checks.assert_state_kept(captured, model)


def test_meta_device() -> None:
    with torch.device("meta"):
        example = models.bert("eager")
    captured = capture(example.model, example.first)
    assert captured(*example.second[0], **example.second[1])[0].is_meta


def test_checkpoint_per_block(bert: models.Example) -> None:
    plain = capture(bert.model, bert.first)
    expected = checks.run(plain, *bert.second, training=True, names=bert.model)
    for layer in plain.get_submodule("encoder.layer").children():
        forward = layer.forward
        layer.forward = lambda *args, forward=forward: checkpoint(forward, *args, use_reentrant=False)
    found = checks.run(plain, *bert.second, training=True, names=bert.model)
    checks.assert_same(found, expected, "checkpointed")


@pytest.mark.parametrize("training", [False, True])
def test_compile_without_graph_break(training: bool) -> None:
    example = models.bert("sdpa", layers=1, dropout=0.0)
    captured = capture(example.model, example.first)
    expected = checks.run(captured, *example.second, training=training, names=example.model)
    torch._dynamo.reset()
    compiled = torch.compile(captured, fullgraph=True, backend="aot_eager")
    found = checks.run(compiled, *example.second, training=training, names=example.model)
    for name, value in expected.tensors.items():
        other = found.tensors[name]
        if value is not None and name != "random state":
            assert other is not None
            assert (value - other).abs().max() <= 1e-5 * value.abs().max().clamp(min=1e-3), name


def test_called_like_the_original(bert: models.Example, captured_bert: Region) -> None:
    (_, kwargs) = bert.second
    by_name = captured_bert.eval()(**kwargs)
    by_position = captured_bert(kwargs["input_ids"], attention_mask=kwargs["attention_mask"])
    assert type(by_name) is type(bert.model(**kwargs))
    assert torch.equal(by_name.last_hidden_state, by_position.last_hidden_state)


def _refused() -> Iterator[tuple[str, dict[str, Any]]]:
    ids, mask = torch.zeros(3, 5, dtype=torch.long), torch.ones(3, 5, dtype=torch.long)
    yield "attention_mask is not given", {"input_ids": ids}
    yield (
        "attention_mask.shape[1] is 6, but input_ids.shape[1] is 5",
        {
            "input_ids": ids,
            "attention_mask": torch.ones(3, 6, dtype=torch.long),
        },
    )
    yield "batch sizes differ: 3, 2", {"input_ids": ids, "attention_mask": mask[:2]}
    yield "'output_hidden_states'", {"input_ids": ids, "attention_mask": mask, "output_hidden_states": True}
    yield "token_type_ids is a tensor", {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids}
    yield (
        "is 40, more than 24",
        {
            "input_ids": torch.zeros(1, 40, dtype=torch.long),
            "attention_mask": torch.ones(1, 40, dtype=torch.long),
        },
    )
    yield "floating", {"input_ids": ids.float(), "attention_mask": mask}
    yield "dimensions", {"input_ids": ids[0], "attention_mask": mask}
    yield "'nonsense'", {"input_ids": ids, "attention_mask": mask, "nonsense": 1}


@pytest.mark.parametrize(("reason", "kwargs"), list(_refused()))
def test_refuses_what_it_was_not_captured_for(reason: str, kwargs: dict[str, Any], captured_bert: Region) -> None:
    assert reason in (captured_bert.signature.accepts((), kwargs) or "")
    with pytest.raises(InputError, match=re.escape(reason)):
        captured_bert(**kwargs)


def test_guards_of_the_model_hold(captured_bert: Region) -> None:
    captured = capture(models.Guarded(), (torch.randn(2, 8),))
    assert captured.signature.accepts((torch.randn(2, 12),), {}) is None
    assert captured.signature.accepts((torch.randn(2, 9),), {}) is not None


def test_fixed_sizes_hold() -> None:
    example = models.vit()
    captured = capture(example.model, example.first)
    assert "x.shape[2] is 48, captured with 32" in str(captured.signature.accepts((torch.randn(2, 3, 48, 32),), {}))


@pytest.mark.parametrize(
    "inputs", [(torch.randn(2, 6, 8),), {"x": torch.randn(2, 6, 8)}, ((), {"x": torch.randn(2, 6, 8)})]
)
def test_forms_of_example_inputs(inputs: Any) -> None:
    captured = capture(models.Tied(), inputs)
    assert isinstance(captured(torch.randn(2, 6, 8)), Tensor)


def test_modes_follow_the_flag() -> None:
    captured = capture(models.FunctionalDropout(), (torch.randn(2, 6, 8),))
    x = torch.ones(2, 6, 8)
    assert captured.training
    assert not torch.equal(captured(x), captured(x))
    captured.eval()
    assert torch.equal(captured(x), captured(x))
    captured.train()
    assert not torch.equal(captured(x), captured(x))


def test_sizes_behind_a_leaf_that_drops_tokens_in_training() -> None:
    """No module of the graph reads the mode itself, and yet a size that is written down depends on it."""

    class Drops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = PatchDropout(0.5, num_prefix_tokens=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.drop(x)
            batch, tokens, width = x.shape
            return x.reshape(batch, tokens, 2, width // 2).transpose(1, 2)

    captured = capture(Drops(), (torch.randn(2, 7, 4),))
    x = torch.randn(3, 7, 4)
    assert captured(x).shape == (3, 2, 4, 2)
    assert torch.equal(captured.eval()(x), x.reshape(3, 7, 2, 2).transpose(1, 2))


def test_capture_in_evaluation_mode_stays_in_it() -> None:
    model = models.FunctionalDropout().eval()
    captured = capture(model, (torch.randn(2, 6, 8),))
    assert not any(module.training for module in captured.modules())
    assert not any(module.training for module in model.modules())


def test_a_tensor_passed_twice_is_two_inputs() -> None:
    class Difference(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return 2 * x - y

    same = torch.randn(2, 4)
    graph = capture(Difference(), (same, same))
    x, y = torch.randn(3, 5), torch.randn(3, 5)
    assert torch.equal(graph(x, y), 2 * x - y)


def test_a_residual_beside_a_cast_keeps_its_own_dtype() -> None:
    """In float32 the cast gives the very tensor that the residual is; in bfloat16 it does not."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6))
            self.linear = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.linear(x)
            h = x.to(torch.float32)
            h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
            return x * (self.weight * h.to(x.dtype) + x)

    model, x = Residual(), torch.randn(2, 5, 6)
    graph = capture(model, (x,))
    assert torch.equal(graph(x), model(x))
    model.to(torch.bfloat16)
    x = torch.randn(3, 4, 6, dtype=torch.bfloat16)
    assert graph(x).dtype == torch.bfloat16
    assert torch.equal(graph(x), model(x))
