"""Training steps on fake tensors, with the ledger open."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from fxtune.accounting.batch import Call
from fxtune.accounting.ledger import Ledger
from fxtune.accounting.optimizers import Optimizer, make
from fxtune.accounting.report import Usage
from fxtune.accounting.standins import Alike, replaced
from fxtune.errors import PlanError
from fxtune.modes import in_mode
from fxtune.tuned import TunedModel

_STEPS = 2
"""From the second on, the optimizer's state lies there during forward and backward."""


@dataclass(frozen=True)
class Setting:
    """How to train.

    Attributes:
        device: on which.
        optimizer: which.
        autocast: the dtype in which the forward runs under torch.autocast; None without.
    """

    device: torch.device
    optimizer: Optimizer
    autocast: torch.dtype | None

    def forward(self) -> AbstractContextManager[Any]:
        """The context of the forward."""
        return torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext()


def usage(name: str, tuned: TunedModel, call: Call, setting: Setting) -> Usage:
    """What training this model takes; the model comes out as it went in.

    Raises:
        PlanError: nothing trains, or not what the outputs depend on.
    """
    ledger = Ledger(setting.device)
    with in_mode(tuned, training=True), FakeTensorMode(allow_non_fake_inputs=True):
        fakes = Alike(setting.device)
        with replaced(tuned, fakes), ledger:
            return _train(name, tuned, fakes.all(call), setting, ledger)


def _train(name: str, tuned: TunedModel, call: Call, setting: Setting, ledger: Ledger) -> Usage:
    weights = [*tuned.parameters(), *tuned.buffers()]
    trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    if not trained:
        raise PlanError(f"Nothing trains by {name!r}", fix="say in the rules what trains: `train: [tuners, head]`")
    for tensor in [*weights, *(leaf for leaf in tree_leaves(call) if isinstance(leaf, Tensor))]:
        ledger.enter(tensor)
    optimizer = make(setting.optimizer, [*trained])
    for _ in range(_STEPS):
        optimizer.zero_grad()
        before = ledger.bytes
        loss = _loss(name, tuned, call, setting)
        saved = ledger.bytes - before - ledger.size(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        del loss
        gradients = ledger.total(parameter.grad for parameter in trained if parameter.grad is not None)
        optimizer.step()
    state = (leaf for leaf in tree_leaves(dict(optimizer.state)) if isinstance(leaf, Tensor))
    return Usage(
        method=name,
        weights=ledger.total(weights),
        trained=sum(parameter.numel() for parameter in trained),
        gradients=gradients,
        optimizer_state=ledger.total(state),
        saved_for_backward=saved,
        peak=ledger.peak,
    )


def _loss(name: str, tuned: TunedModel, call: Call, setting: Setting) -> Tensor:
    """The sum of the outputs. No reference to them is left, so that what still lives afterwards is the backward's."""
    with setting.forward():
        outputs = tuned(*call[0], **call[1])
    parts = [leaf.sum() for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not parts:
        raise PlanError(
            f"No output of the model depends on what trains by {name!r}",
            fix="let the rules train what its outputs come from",
        )
    loss = parts[0]
    for part in parts[1:]:
        loss = loss + part
    return loss
