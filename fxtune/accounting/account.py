"""`memory`: training by several methods, side by side, before any of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import nn

from fxtune.accounting.arguments import autocast_dtype, check_batch, device_for
from fxtune.accounting.batch import batch_of, with_batch
from fxtune.accounting.optimizers import Optimizer, check_optimizer
from fxtune.accounting.report import MemoryReport, Usage
from fxtune.accounting.standins import Alike, replaced
from fxtune.accounting.step import Setting, usage
from fxtune.api import RulesLike, apply
from fxtune.errors import FxtuneError
from fxtune.names import resolve
from fxtune.rules import load
from fxtune.tracing import call_inputs
from fxtune.tuned import TunedModel, one_capture
from fxtune.wrapped import check_plain

_META = torch.device("meta")


@dataclass(frozen=True)
class _Method:
    """One way to train.

    Attributes:
        name: under which it is shown.
        rules: as for `apply`.
        settings: more for `apply`.
        asked: whether the user asked for it. Others are left out where they don't work.
    """

    name: str
    rules: Any
    settings: dict[str, Any] = field(default_factory=dict)
    asked: bool = False


_FULL = _Method("full", "full", {"batchnorm": "track"}, asked=True)
_LINEAR = _Method("linear", "linear")
_LORA = _Method("lora", "lora")


def memory(
    model: nn.Module | str,
    rules: RulesLike | Sequence[RulesLike] | None = None,
    *,
    batch: int | None = None,
    optimizer: Optimizer = "adamw",
    device: str | torch.device | None = None,
    autocast: torch.dtype | str | None = None,
    checkpointing: bool = False,
    example_inputs: Any = None,
    head: str | None = None,
    num_classes: int | None = None,
    **settings: Any,
) -> MemoryReport:
    """What training takes by full fine-tuning, linear probing, LoRA and the rules: weights, gradients, optimiser state,
    bytes saved for backward, peak.

    Two training steps run on fake tensors: forward in training mode, the sum of the outputs as the loss, backward, the
    optimizer's step. Nothing is computed and nothing of the model's size is allocated. `Usage` says what counts as
    what. Bytes saved for backward are exact. The peak holds every tensor that the program, autograd and the optimizer
    make; what kernels take for themselves is estimated for the convolutions of CPUs, and left out elsewhere.

    Which attention kernel runs, and so what it saves, depends on the device: it is chosen as it would be there. The
    model that `strip` gives back, which on the CPU keeps what trains a second time, does not count.

    Args:
        model: a model, or a name that the command line takes. It is not changed; one that is given by name is built
            without its weights.
        rules: as for `fxtune.apply`; None compares the first three only.
        batch: samples a step; by default that of the example inputs.
        optimizer: ``adamw``, ``adam``, ``sgd``, ``momentum``, or a function from a list of weights to an optimizer.
        device: ``cpu``, or ``cuda`` where there is one; by default the model's own, and ``cpu`` for one without
            weights.
        autocast: dtype (``"bfloat16"``) of torch.autocast around the forward.
        checkpointing: compute the Blocks again in the backward, as ``tuned.set_grad_checkpointing()`` does.
        example_inputs: as for `fxtune.apply`.
        head: as for `fxtune.apply`.
        num_classes: as for `fxtune.apply`.
        settings: more of what `fxtune.apply` takes, for the rules alone: settings of tuners, ``form=``, ``dtype=``.

    Returns:
        One `Usage` a method. A method that was not asked for and does not work on this model (LoRA without attention)
        is left out, and the report says why.

    Raises:
        InputError: the model takes no such batch.
        UnsupportedModelError: the model is quantised.
        FxtuneError: an argument is wrong, the model has no such name, or the rules could not be applied.
    """
    check_batch(batch)
    check_optimizer(optimizer)
    built = resolve(model, meta=True) if isinstance(model, str) else model
    original = built.strip() if isinstance(built, TunedModel) else built
    check_plain(original, "counting memory")
    setting = Setting(device_for(device, original), optimizer, autocast_dtype(autocast))
    call = Alike(_META).all(call_inputs(original, example_inputs))
    shared = {"example_inputs": call, "head": head, "num_classes": num_classes}
    left_out: dict[str, str] = {}
    tuned_models = _tuned_models(original, _methods(rules, settings), shared, checkpointing, left_out)
    given = [("as tuned", built)] if isinstance(built, TunedModel) else []
    usages: list[Usage] = []
    with one_capture():
        for name, tuned in chain(tuned_models, given):
            signature = tuned.graph_module.signature
            sized = call if batch is None else with_batch(signature, call, batch)
            usages.append(usage(name, tuned, sized, setting))
    return MemoryReport(
        model=type(original).__name__,
        batch=batch or batch_of(signature, call),
        device=setting.device.type,
        optimizer=optimizer if isinstance(optimizer, str) else getattr(optimizer, "__name__", "an optimizer"),
        autocast=str(setting.autocast).removeprefix("torch.") if setting.autocast else None,
        checkpointing=checkpointing,
        usages=tuple(usages),
        left_out=left_out,
    )


def _methods(rules: RulesLike | Sequence[RulesLike] | None, settings: dict[str, Any]) -> list[_Method]:
    """Those to compare, and last the rules, unless they are LoRA, which is compared anyway."""
    if rules is None:
        return [_FULL, _LINEAR, _LORA]
    name = " + ".join(rule_set.name for rule_set in load(rules))
    given = _Method(name, rules, settings, asked=True)
    return [_FULL, _LINEAR, *([] if name == _LORA.name else [_LORA]), given]


def _tuned_models(
    model: nn.Module, methods: list[_Method], shared: dict[str, Any], checkpointing: bool, left_out: dict[str, str]
) -> Iterator[tuple[str, TunedModel]]:
    """The model tuned by each method, on the meta device; notes in `left_out` what does not work on it."""
    for method in methods:
        try:
            with replaced(model, Alike(_META)):
                tuned = apply(model, method.rules, **shared, **method.settings)
        except FxtuneError as error:
            if method.asked:
                raise
            left_out[method.name] = error.asked
            continue
        if checkpointing:
            tuned.set_grad_checkpointing()
        yield method.name, tuned
