"""Tuned models without rules: a rewrite done by hand, so that tests of TunedModel depend on capture alone."""

from __future__ import annotations

import copy
import functools
import operator
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from fxtune.tracing import Region
from fxtune.tuned import Report, RuleOutcome, TunedModel, observed_capture, structural_twin

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TEXT = {
    "input_ids": torch.randint(0, 50, (3, 8), generator=torch.Generator().manual_seed(0)),
    "attention_mask": torch.ones(3, 8, dtype=torch.long),
}
LABELS = torch.tensor([0, 1, 2])


class Beside(nn.Module):
    """The simplest tuner: adds ``weight * input + bias`` to the output. Making one draws a number, as for real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, 1), 0.25))
        self.bias = nn.Parameter(torch.rand(1) * 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight[0, 0] * x + self.bias


@dataclass(frozen=True)
class ByHand:
    """Puts a `Beside` on the Regions at some paths, where the graph has them."""

    paths: tuple[str, ...]

    def __call__(self, root: Region) -> Region:
        regions = dict(root.named_modules())
        for path in self.paths:
            region = regions.get(path)
            if isinstance(region, Region):
                _insert(region)
        return root


def _insert(region: Region) -> None:
    region.add_module("tuners", nn.ModuleDict({"beside": Beside()}))
    graph = region.graph
    source = next(node for node in graph.nodes if node.op == "placeholder")
    end = next(node for node in graph.nodes if node.op == "output")
    with graph.inserting_after(source):  # before anything can overwrite it in place
        copied = graph.call_function(torch.ops.aten.clone.default, (source,))
    with graph.inserting_before(end):
        branch = graph.call_module("tuners.beside", (copied,))
        total = graph.call_function(operator.add, (end.args[0], branch))
    end.args = (total,)
    region.recompile()


def tuned_by_hand(
    model: nn.Module, inputs: Any, paths: tuple[str, ...], *, trains: tuple[str, ...] = (), **settings: Any
) -> TunedModel:
    """What `apply` does, with the rewrite of `ByHand`. `trains`: original weights that train."""
    twin = structural_twin(model)
    graph, called = observed_capture(twin, inputs)
    rewrite = ByHand(paths)
    rewrite(graph)
    tuners = [name for name, _ in graph.named_parameters() if "tuners" in name.split(".")]
    report = Report(type(model).__name__, (RuleOutcome("by hand", "beside", paths, 2 * len(paths)),))
    return TunedModel(
        model,
        twin,
        graph,
        called=called,
        rewrite=rewrite,
        trains=[*tuners, *trains],
        report=report,
        blocks=paths,
        **settings,
    )


BLOCKS = ("blocks.0", "blocks.1")
HEAD = ("head.weight", "head.bias")
LAYERS = ("bert.encoder.layer.0", "bert.encoder.layer.1")


def vit(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **{**sizes, **settings}).eval()


def resnet(name: str = "test_resnet") -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5).eval()


def bert(kind: type = BertForSequenceClassification, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    limits = {"intermediate_size": 64, "max_position_embeddings": 32, "num_labels": 3}
    return kind(BertConfig(**{**sizes, **limits, **settings})).eval()


def masked_lm() -> nn.Module:
    """A model with tied weights: the decoder is the embedding."""
    return bert(BertForMaskedLM)


@functools.cache
def _prepared(name: str) -> TunedModel:
    if name == "vit":
        return tuned_by_hand(vit(), (IMAGES,), BLOCKS, trains=HEAD, head="head")
    if name == "bert":
        return tuned_by_hand(bert(), TEXT, LAYERS)
    assert name == "masked_lm"
    tuned = tuned_by_hand(masked_lm(), TEXT, LAYERS)
    tuned.prepare(**TEXT, labels=TEXT["input_ids"])
    return tuned


def tuned_copy(name: str) -> TunedModel:
    """A tuned model of one's own: captured once for all tests, and copied, which takes far less time."""
    return copy.deepcopy(_prepared(name))


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def flags(model: nn.Module) -> list[Any]:
    """What a failed or finished call must leave as it was."""
    return [
        [(name, module.training, len(module._forward_hooks)) for name, module in model.named_modules()],
        [(name, parameter.requires_grad, parameter.data_ptr()) for name, parameter in model.named_parameters()],
        sorted(model.__dict__),
    ]


def same_state(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)
