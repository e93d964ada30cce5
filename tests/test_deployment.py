"""Tuned models leave eager PyTorch by `torch.export`, `torch.compile` and ONNX; each way gives the same numbers."""

from __future__ import annotations

import functools
import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.export import Dim, ExportedProgram

import fxtune
from effort import DEEP
from families import FAMILIES, build, tuned_on
from fxtune.errors import UnsupportedModelError
from fxtune.tuned import TunedModel

IN_SOFTMAX = {"prefix", "prefix_scaled", "vpt_deep", "vpt_shallow"}
"""Tuners in an attention. An exported program has their original form, all keys in one softmax in float32; the tuned
model mixes two parts in float64. Nothing else is written otherwise."""
SOFTMAX = 2e-6
KERNELS = 5e-6
"""ONNX Runtime and inductor have kernels of their own, which sum in another order."""

RULES: dict[str, dict[str, Any]] = {
    "prefix_scaled": {"rules": "prefix", "scale": "scalar"},
    "res_bypass_optimized": {"rules": "res_bypass", "optimize": True},
}
PAIRS = [
    ("vit", "prefix"),
    ("vit", "prefix_scaled"),
    ("vit", "vpt_deep"),
    ("vit", "res_bypass_optimized"),
    ("bert", "tri_res"),
    ("bert", "prefix"),
    ("bert", "vpt_shallow"),
    ("convnext", "tri_res"),
    ("resnet", "res_bypass"),
    ("unet", "lora"),
]
MORE = [
    *[(family, rule) for family in FAMILIES for rule in ("tri_res", "dual_res", "res_bypass", "ssf", "bitfit")],
    *[("vit", rule) for rule in ("lora", "vpt_shallow", "tri_res_prompt")],
    *[("bert", rule) for rule in ("lora", "vpt_deep", "prefix_scaled")],
    *[("unet", rule) for rule in ("prefix", "prompt")],
]
ALL = [*PAIRS, *(pair for pair in MORE if pair not in PAIRS)] if DEEP else PAIRS


@dataclass(frozen=True)
class Deployed:
    """A tuned model, and its exported program with a batch of any size."""

    family: str
    tuned: TunedModel
    program: ExportedProgram
    limit: float

    def inputs(self, batch: int) -> dict[str, Any]:
        return FAMILIES[self.family].inputs(batch)


@functools.cache
def deployed(family: str, rule: str) -> Deployed:
    tuned = tuned_on(build(family), family, **RULES.get(rule, {"rules": rule}))
    inputs = FAMILIES[family].inputs(2)
    program = torch.export.export(tuned, (), inputs, dynamic_shapes={name: {0: Dim.AUTO} for name in inputs})
    return Deployed(family, tuned, program, SOFTMAX if rule in IN_SOFTMAX else 0.0)


def tensors(result: Any) -> list[Tensor]:
    return [leaf.detach() for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to the largest expected number."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True))


def in_onnx_runtime(model: torch.onnx.ONNXProgram) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.model_proto.SerializeToString())


def run(session: onnxruntime.InferenceSession, inputs: dict[str, Any]) -> list[Tensor]:
    read = {given.name: inputs[given.name].numpy() for given in session.get_inputs()}
    return [torch.from_numpy(array) for array in session.run(None, read)]


# ---- torch.export ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "rule"), ALL)
def test_an_exported_program_gives_what_the_tuned_model_gives(family: str, rule: str) -> None:
    case = deployed(family, rule)
    for batch in (2, 3):
        inputs = case.inputs(batch)
        found, expected = case.program.module()(**inputs), case.tuned(**inputs)
        assert type(found) is type(expected)
        assert error(tensors(found), tensors(expected)) <= case.limit


@pytest.mark.parametrize(("family", "rule"), ALL)
def test_it_has_operators_of_pytorch_alone(family: str, rule: str) -> None:
    graphs = [module.graph for module in deployed(family, rule).program.graph_module.modules()]
    called = [node.target for graph in graphs for node in graph.nodes if node.op == "call_function"]
    assert {op.namespace for op in called if isinstance(op, torch._ops.OpOverload)} == {"aten"}


@pytest.mark.parametrize(("family", "rule"), ALL)
def test_it_is_saved_and_loaded(family: str, rule: str) -> None:
    case, file = deployed(family, rule), io.BytesIO()
    torch.export.save(case.program, file)
    file.seek(0)
    inputs = case.inputs(3)
    found, expected = (tensors(p.module()(**inputs)) for p in (torch.export.load(file), case.program))
    assert error(found, expected) == 0


ELSEWHERE = """
import sys

sys.modules["fxtune"] = None  # importing it would raise
import torch

program, data = torch.export.load("tuned.pt2"), torch.load("data.pt")
assert torch.equal(program.module()(x=data["x"]), data["y"])
"""


def test_it_runs_where_fxtune_is_not(tmp_path: Path) -> None:
    case = deployed("vit", "prefix")
    images = case.inputs(3)["x"]
    torch.export.save(case.program, tmp_path / "tuned.pt2")
    torch.save({"x": images, "y": case.program.module()(x=images).detach()}, tmp_path / "data.pt")
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("family", "rule"), [("vit", "prefix"), ("vit", "prefix_scaled"), ("resnet", "res_bypass")])
def test_it_has_the_same_gradients(family: str, rule: str) -> None:
    case = deployed(family, rule)
    gradients = []
    for model in (case.program.module(), case.tuned):
        loss = FAMILIES[family].loss(model(**case.inputs(3)), 3)
        gradients.append(torch.autograd.grad(loss, [model.get_parameter(name) for name in case.tuned.trainable]))
    for name, found, expected in zip(case.tuned.trainable, *gradients, strict=True):
        assert error([found], [expected]) <= 10 * SOFTMAX, name


def test_what_no_output_depends_on_is_gone_once_it_is_lowered() -> None:
    """λ is there to be watched, which nobody can do in an exported program: one attention a block is left."""
    attention = torch.ops.aten.scaled_dot_product_attention.default
    lowered = deployed("vit", "prefix").program.run_decompositions({})
    assert len(lowered.graph.find_nodes(op="call_function", target=attention)) == 2


def test_batch_and_length_have_names_and_bounds() -> None:
    tuned, inputs = deployed("bert", "prefix").tuned, FAMILIES["bert"].inputs(2)
    shapes = {name: {0: Dim("batch"), 1: Dim("length", max=12)} for name in inputs}
    program = torch.export.export(tuned, (), inputs, dynamic_shapes=shapes)
    for batch, length in ((1, 9), (4, 12), (3, 1)):
        ids = torch.randint(40, (batch, length), generator=torch.Generator().manual_seed(batch))
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        assert error(tensors(program.module()(**given)), tensors(tuned(**given))) <= SOFTMAX
    longer = torch.ones(2, 13, dtype=torch.long)
    with pytest.raises(AssertionError, match="12"):
        program.module()(input_ids=longer, attention_mask=longer)


def test_strictly() -> None:
    case = deployed("vit", "prefix")
    images = case.inputs(2)["x"]
    program = torch.export.export(case.tuned, (images,), dynamic_shapes=({0: Dim.AUTO},), strict=True)
    more = case.inputs(3)["x"]
    assert error(tensors(program.module()(more)), tensors(case.tuned(more))) <= SOFTMAX


def test_many_tasks() -> None:
    model, images = build("vit"), FAMILIES["vit"].inputs(3)["x"]
    tasks = {name: tuned_on(model, "vit", "res_bypass", seed) for seed, name in enumerate(("birds", "cars"))}
    many = fxtune.multitask(model, tasks).eval()
    program = torch.export.export(many, (images[:2],), dynamic_shapes={"args": ({0: Dim("batch")},)})
    found, expected = program.module()(images), many(images)
    assert list(found) == list(expected) == list(tasks)
    assert error(tensors(found), tensors(expected)) <= KERNELS  # here the tasks are one batched computation


# ---- ONNX ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "rule"), ALL)
def test_onnx_runtime_gives_what_the_tuned_model_gives(family: str, rule: str) -> None:
    case = deployed(family, rule)
    session = in_onnx_runtime(torch.onnx.export(case.program, verbose=False))
    for batch in (2, 3):
        inputs = case.inputs(batch)
        assert error(run(session, inputs), tensors(case.tuned(**inputs))) <= KERNELS


def test_a_tuned_model_goes_to_a_file_in_one_call(tmp_path: Path) -> None:
    case, file = deployed("vit", "prefix"), tmp_path / "tuned.onnx"
    images = case.inputs(2)["x"]
    torch.onnx.export(case.tuned, (images,), file, dynamic_shapes=({0: Dim("batch")},), dynamo=True, verbose=False)
    more = case.inputs(3)
    assert error(run(onnxruntime.InferenceSession(file), more), tensors(case.tuned(**more))) <= KERNELS


def test_a_merged_model_is_the_plain_models_graph() -> None:
    model, images = build("vit"), FAMILIES["vit"].inputs(2)["x"]
    merged = tuned_on(model, "vit", "lora").merge()
    theirs, plain = (torch.onnx.export(torch.export.export(m, (images,)), verbose=False) for m in (merged, model))
    assert [node.op_type for node in theirs.model.graph] == [node.op_type for node in plain.model.graph]
    assert error(run(in_onnx_runtime(theirs), {"x": images}), tensors(merged(images))) <= KERNELS


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_the_exporter_by_torchscript_is_refused() -> None:
    tuned, images = deployed("vit", "prefix").tuned, FAMILIES["vit"].inputs(2)["x"]
    with pytest.raises(UnsupportedModelError, match="dynamo=True"):
        torch.onnx.export(tuned, (images,), io.BytesIO(), dynamo=False)


def test_new_inputs_say_to_prepare() -> None:
    """Exporting can't capture; a graph that the tuned model has goes through."""
    tuned, inputs = tuned_on(build("bert"), "bert", "prefix"), FAMILIES["bert"].inputs(2)
    alone = {"input_ids": inputs["input_ids"]}
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"tuned\.prepare"):
        torch.onnx.export(tuned, kwargs=alone, dynamo=True, verbose=False)
    tuned.prepare(**alone)
    session = in_onnx_runtime(torch.onnx.export(torch.export.export(tuned, (), alone), verbose=False))
    assert error(run(session, alone), tensors(tuned(**alone))) <= KERNELS


# ---- torch.compile ---------------------------------------------------------------------------------------------------

FEW = [("vit", "prefix"), ("bert", "vpt_shallow"), ("convnext", "tri_res"), ("resnet", "res_bypass")]


@pytest.fixture
def fresh_dynamo() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("family", "rule"), ALL if DEEP else FEW)
def test_it_compiles_as_one_graph(family: str, rule: str, fresh_dynamo: None) -> None:
    """Bit by bit, forward and backward: this backend runs PyTorch's own kernels."""
    case = deployed(family, rule)
    weights = [case.tuned.get_parameter(name) for name in case.tuned.trainable]
    compiled = torch.compile(case.tuned, fullgraph=True, backend="aot_eager")
    results = []
    for model in (compiled, case.tuned):
        output = model(**case.inputs(2))
        loss = FAMILIES[family].loss(output, 2)
        results.append([*tensors(output), *torch.autograd.grad(loss, weights)])
    assert error(*results) == 0


@pytest.mark.parametrize(("family", "rule"), ALL if DEEP else [("vit", "prefix")])
def test_inductor(family: str, rule: str, fresh_dynamo: None) -> None:
    case = deployed(family, rule)
    inputs = case.inputs(2)
    with torch.no_grad():
        found = torch.compile(case.tuned, fullgraph=True)(**inputs)
        assert error(tensors(found), tensors(case.tuned(**inputs))) <= KERNELS
