"""One model with the same rules in both forms, on private copies, and what the forms compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxtune.api import RulesLike, apply
from fxtune.errors import PlanError, UnsupportedModelError
from fxtune.planning import Form
from fxtune.tracing import call_inputs
from fxtune.tuned import TunedModel, structural_twin
from fxtune.verifying.comparing import Kind
from fxtune.verifying.inputs import Call, Inputs
from fxtune.verifying.weights import drawn_tensors, drawn_weights, representable


@dataclass(frozen=True)
class Values:
    """What one call gave, in float64: floating outputs, and gradients of floating inputs and of trained weights."""

    outputs: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]

    def of(self, kind: Kind) -> Mapping[str, Tensor]:
        found: Mapping[str, Tensor] = getattr(self, kind)
        return found


class Pair:
    """Both forms of the rules on one model, which stays as it is, and inputs for them.

    Raises:
        FxtuneError: the rules could not be applied; or a tuner has no original form, or other weights in it.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: RulesLike | Sequence[RulesLike],
        example_inputs: Any = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        args, kwargs = call_inputs(model, example_inputs)
        forms: tuple[Form, Form] = ("original", "unbound")  # what has no original form says so at once
        private = _private(model)
        options = {"seed": 0, **(settings or {}), "inplace": True, "example_inputs": (args, kwargs)}
        self._forms: dict[str, TunedModel] = {
            form: apply(private, rules, form=form, **options).eval() for form in forms
        }
        self._check_weights()
        with torch.no_grad():
            for tuned in self._forms.values():
                for buffer in tuned.buffers():
                    if buffer.is_floating_point():
                        buffer.copy_(representable(buffer))
        self.inputs = Inputs([tuned.graph_module.signature for tuned in self._forms.values()], args, kwargs)
        self.tuned = self._forms["unbound"]

    def load(self, seed: int, dtype: torch.dtype) -> None:
        """Draws every weight, rounded to `dtype`; both forms get the same ones.

        The tuners' are in float32 at least: so `apply` makes them.
        """
        shapes = {name: tensor.shape for name, tensor in drawn_tensors(self.tuned)}
        weights = drawn_weights(shapes, seed)
        with torch.no_grad():
            for tuned in self._forms.values():
                _move(tuned, dtype)
                for name, tensor in drawn_tensors(tuned):
                    tensor.copy_(weights[name])

    def run(self, form: Form, call: Call, dtype: torch.dtype, directions: Callable[[str, Tensor], Tensor]) -> Values:
        """Forward and gradients in one form, in eval mode, of the weights that were loaded.

        Args:
            form: which.
            call: its inputs.
            dtype: in which to compute; that of `load`, or a wider one for the truth about it.
            directions: gives the gradient of an output by its name.
        """
        tuned = self._forms[form]
        _move(tuned, dtype)
        leaves = call.mapped(lambda tensor: _leaf(tensor, dtype))
        with torch.enable_grad():
            outputs = _floating(tuned(*leaves.args, **leaves.kwargs))
        inputs = {place: tensor for place, tensor in leaves.tensors().items() if tensor.requires_grad}
        weights = {name: weight for name, weight in tuned.named_parameters() if weight.requires_grad}
        gradients = _gradients(outputs, {**inputs, **weights}, directions)
        return Values({name: _wide(tensor) for name, tensor in outputs.items()}, gradients)

    def _check_weights(self) -> None:
        """One state_dict must fit both: a tuner may give its weights a size by what it is told of its place."""
        shapes = [{name: value.shape for name, value in tuned.state_dict().items()} for tuned in self._forms.values()]
        original, unbound = shapes
        differing = [name for name in {**original, **unbound} if original.get(name) != unbound.get(name)]
        if differing:
            name = differing[0]
            raise PlanError(
                "The two forms of these rules do not have the same weights",
                found=f"`{name}` is {_described(original.get(name))} in the original form and "
                f"{_described(unbound.get(name))} in the unbound one ({len(differing)} differ)",
                fix="make the weights in the tuner's __init__, by what `place` says whatever the form is",
            )


def _private(model: nn.Module) -> nn.Module:
    """A copy whose weights lie in memory of its own."""
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise UnsupportedModelError(
            "A model on the meta device can't be verified",
            found="it holds no numbers, not even constants",
            fix="build it on a device; its weights don't matter, they are drawn",
        )
    twin = structural_twin(model)
    twin._apply(lambda tensor: tensor.detach().clone())  # type: ignore[no-untyped-call]
    return twin


def _move(tuned: TunedModel, dtype: torch.dtype) -> None:
    nn.Module.to(tuned, dtype)  # not the model's own `to`, which may warn
    wide = torch.promote_types(dtype, torch.float32)
    for path, module in tuned.named_modules():
        if path.split(".")[-2:-1] == ["tuners"]:
            module.to(wide)


def _leaf(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype, copy=True).requires_grad_() if tensor.is_floating_point() else tensor.clone()


def _floating(output: Any) -> dict[str, Tensor]:
    """The floating tensors of what a model returns, by their places in it: ``.logits``, ``[0]``."""
    try:
        named = [(pytree.keystr(path), leaf) for path, leaf in pytree.tree_flatten_with_path(output)[0]]
    except ValueError:  # an output type of a library that has not told torch its keys
        named = [(f"[{index}]", leaf) for index, leaf in enumerate(pytree.tree_leaves(output))]
    return {f"output{place}": x for place, x in named if isinstance(x, Tensor) and x.is_floating_point()}


def _gradients(
    outputs: Mapping[str, Tensor], of: Mapping[str, Tensor], directions: Callable[[str, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Zero for what no output depends on."""
    depending = [name for name, output in outputs.items() if output.requires_grad]
    if not depending:
        return {}
    found = torch.autograd.grad(
        [outputs[name] for name in depending],
        list(of.values()),
        [directions(name, outputs[name]) for name in depending],
        allow_unused=True,
    )
    return {
        name: _wide(torch.zeros_like(tensor) if gradient is None else gradient)
        for (name, tensor), gradient in zip(of.items(), found, strict=True)
    }


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").double()


def _described(shape: torch.Size | None) -> str:
    return "missing" if shape is None else " x ".join(map(str, shape)) or "a number"
