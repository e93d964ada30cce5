"""One captured model with the tuners of a rule in both forms, and how far the two are apart."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import fxtune
from form_models import Case, Inputs
from fxtune import rules
from fxtune.matching import Sites
from fxtune.patterns import load_patterns
from fxtune.planning import plan
from fxtune.rewriting import rewrite
from fxtune.tuners import resolve
from fxtune.view import view

FORMS = ("unbound", "original")


class Captured:
    """A model's graph, captured once; every rule is carried out on a copy of it."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.dtype = torch.float64 if case.float64 else torch.float32
        model = case.model.to(self.dtype)
        self.graph = fxtune.capture(model, cast(case.example, self.dtype))
        self.sites = Sites(view(self.graph), load_patterns([]))

    def tuned(self, rule: Any, form: Any, seed: int = 1, **settings: Any) -> fx.GraphModule:
        """The graph with the tuners of a rule set, whose weights are drawn, in float64 and eval mode."""
        root = copy.deepcopy(self.graph)
        patch = plan(root, self.sites, resolve(rules.load(rule), settings), form=form, seed=seed)
        tuned = rewrite(root, patch, dtype=self.dtype).double().eval()
        awaken(tuned)
        return tuned

    def both(self, rule: Any, **settings: Any) -> tuple[fx.GraphModule, fx.GraphModule]:
        """The unbound form and the original one, with the same weights."""
        unbound, original = (self.tuned(rule, form, seed, **settings) for seed, form in enumerate(FORMS))
        original.load_state_dict(unbound.state_dict())
        return unbound, original

    def kv_heads(self, path: str) -> int:
        """Key heads of the attention whose core lies at a module path."""
        (attention,) = (s.attention for s in self.sites.of("mha") if f"{path}.".startswith(f"{s.path}."))
        assert attention is not None
        return attention.kv_heads

    def inputs(self) -> list[Inputs]:
        """The example and the others, in float64."""
        return [cast(inputs, torch.float64) for inputs in (self.case.example, *self.case.others)]


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Inputs whose floating tensors are of another dtype."""
    cast: Inputs = pytree.tree_map(
        lambda x: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x, inputs
    )
    return cast


def tuners(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of the tuners, by name."""
    return {name: weight for name, weight in model.named_parameters() if "tuners" in name.split(".")}


def awaken(model: nn.Module, size: float = 0.4) -> None:
    """Draws every weight of the tuners anew, none of them zero."""
    made = torch.Generator().manual_seed(0)
    for weight in tuners(model).values():
        weight.data = size * torch.randn(weight.shape, generator=made, dtype=torch.float64).to(weight.dtype)


def floats(output: Any) -> list[Tensor]:
    """Every floating tensor of a model's output."""
    plain = dict(output) if hasattr(output, "keys") else output
    return [leaf for leaf in pytree.tree_leaves(plain) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


@dataclass(frozen=True)
class Run:
    """What a model gives, and the gradients of a fixed functional of it."""

    outputs: list[Tensor]
    gradients: dict[str, Tensor]


def run(model: nn.Module, inputs: Inputs) -> Run:
    """Runs `model`; gradients are of its tuners' weights, by number, and of the floating inputs."""
    inputs = {k: v.clone().requires_grad_() if _is_float(v) else v for k, v in inputs.items()}
    weights: dict[str, Any] = {str(i): weight for i, weight in enumerate(tuners(model).values())}
    wanted = {**weights, **{k: v for k, v in inputs.items() if _is_float(v)}}
    outputs = floats(model(**inputs))
    drawn = torch.Generator().manual_seed(3)
    total = sum((y * torch.randn(y.shape, generator=drawn, dtype=torch.float64).to(y)).sum() for y in outputs)
    found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    zeros = (torch.zeros_like(w) if g is None else g for w, g in zip(wanted.values(), found, strict=True))
    return Run([y.detach() for y in outputs], dict(zip(wanted, zeros, strict=True)))


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def apart(ours: Run, theirs: Run) -> tuple[float, float]:
    """The largest relative errors of outputs and of gradients: ``max|a - b| / max|b|`` over a tensor.

    A gradient that vanishes (of a bias of the keys, say) is measured against a thousandth of the largest.
    """
    assert len(ours.outputs) == len(theirs.outputs)
    assert ours.gradients.keys() == theirs.gradients.keys()
    largest = max((float(g.abs().max()) for g in theirs.gradients.values() if g.numel()), default=0.0)
    outputs = [error(a, b) for a, b in zip(ours.outputs, theirs.outputs, strict=True)]
    gradients = [error(g, theirs.gradients[k], 1e-3 * largest) for k, g in ours.gradients.items() if g.numel()]
    return max(outputs), max(gradients, default=0.0)


def error(ours: Tensor, theirs: Tensor, floor: float = 0.0) -> float:
    """The relative error of a tensor; infinite where one is not finite, or of another shape."""
    if ours.shape != theirs.shape or not (ours.isfinite().all() and theirs.isfinite().all()):
        return float("inf")
    return float((ours - theirs).abs().max() / max(float(theirs.abs().max()), floor, 1e-300))
