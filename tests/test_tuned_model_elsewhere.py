"""A TunedModel compiled, exported, checkpointed, and spread over processes."""

import pathlib
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from fxtune.errors import InputError, PlanError
from fxtune.testing import saved_bytes, tensors
from fxtune.tuned import TunedModel
from tuned_support import (
    IMAGES,
    LABELS,
    TEXT,
    same_state,
    snapshot,
    tuned_by_hand,
    tuned_copy,
    vit,
)


@pytest.fixture
def tuned() -> TunedModel:
    return tuned_copy("vit")


@pytest.fixture
def model(tuned: TunedModel) -> nn.Module:
    return tuned.strip()


# torch.compile, torch.export, checkpointing


@pytest.fixture
def fresh_dynamo() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_it_compiles_without_a_break(model: nn.Module, tuned: TunedModel, fresh_dynamo: None) -> None:
    compiled = torch.compile(tuned, fullgraph=True, backend="aot_eager")
    out, expected = compiled(IMAGES), tuned(IMAGES)
    assert torch.equal(out, expected)
    grads = torch.autograd.grad(out.sum(), [tuned.get_parameter(n) for n in tuned.trainable])
    wanted = torch.autograd.grad(expected.sum(), [tuned.get_parameter(n) for n in tuned.trainable])
    assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(grads, wanted, strict=True))


def test_compiling_new_inputs_says_to_prepare(fresh_dynamo: None) -> None:
    tuned = tuned_copy("bert")
    compiled = torch.compile(tuned, fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"tuned\.prepare"):
        compiled(**TEXT, labels=LABELS)
    tuned.prepare(**TEXT, labels=LABELS)
    assert torch.equal(compiled(**TEXT, labels=LABELS).loss, tuned(**TEXT, labels=LABELS).loss)


def test_it_exports(tuned: TunedModel) -> None:
    program = torch.export.export(tuned, (IMAGES,))
    assert torch.equal(program.module()(IMAGES), tuned(IMAGES))


def test_exporting_new_inputs_says_to_prepare() -> None:
    tuned = tuned_copy("bert")
    with pytest.raises(InputError, match=r"tuned\.prepare"):
        torch.export.export(tuned, (), {**TEXT, "labels": LABELS})


def _saved_bytes(tuned: TunedModel) -> int:
    return saved_bytes(lambda: tuned(IMAGES).sum(), tensors(tuned))


def test_checkpointing_saves_memory_and_keeps_outputs_and_gradients(tuned: TunedModel) -> None:
    tuned.train()
    wanted = [tuned.get_parameter(name) for name in tuned.trainable]
    before = tuned(IMAGES)
    expected, size = torch.autograd.grad(before.sum(), wanted), _saved_bytes(tuned)
    tuned.set_grad_checkpointing()
    assert tuned.is_gradient_checkpointing
    after = tuned(IMAGES)
    assert torch.equal(after, before)
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(after.sum(), wanted), expected, strict=True))
    assert _saved_bytes(tuned) < size / 2
    tuned.set_grad_checkpointing(False)
    assert _saved_bytes(tuned) == size and not tuned.is_gradient_checkpointing


def test_checkpointing_that_would_lose_gradients_is_refused(tuned: TunedModel) -> None:
    with pytest.raises(InputError, match="use_reentrant"):
        tuned.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(InputError, match="every_n_layers"):
        tuned.gradient_checkpointing_enable(every_n_layers=2)
    with pytest.raises(PlanError, match="Blocks"):
        tuned_by_hand(vit(), (IMAGES,), ()).set_grad_checkpointing()
    assert not tuned.is_gradient_checkpointing


# Distributed training, in a world of one process


@pytest.fixture
def world(tmp_path: pathlib.Path) -> Any:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_distributed_gradients_are_the_plain_ones(model: nn.Module, tuned: TunedModel, way: str, world: None) -> None:
    names, state = tuned.trainable, snapshot(model)
    expected = torch.autograd.grad(tuned(IMAGES).square().mean(), [tuned.get_parameter(name) for name in names])
    wrapped: nn.Module = tuned
    if way == "ddp":
        wrapped = nn.parallel.DistributedDataParallel(tuned)
    else:
        mesh = init_device_mesh("cpu", (1,))
        for block in tuned.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(tuned, mesh=mesh)
    wrapped(IMAGES).square().mean().backward()
    for name, gradient in zip(names, expected, strict=True):
        got = tuned.get_parameter(name).grad
        assert torch.allclose(getattr(got, "full_tensor", lambda got=got: got)(), gradient, rtol=1e-5, atol=1e-8), name
    assert same_state(model.state_dict(), state)
