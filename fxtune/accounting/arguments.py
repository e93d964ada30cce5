"""Arguments of `memory`, checked."""

from __future__ import annotations

import torch
from torch import nn

from fxtune.errors import FxtuneError

_DEVICES = ("cpu", "cuda")


def check_batch(batch: object) -> None:
    """Raises FxtuneError for what is no batch size."""
    if batch is not None and (type(batch) is not int or batch < 1):
        raise FxtuneError(
            f"There is no such batch: batch={batch!r}", fix="pass a whole number of at least 1, or leave it out"
        )


def device_for(device: str | torch.device | None, model: nn.Module) -> torch.device:
    """Where it would train.

    Raises:
        FxtuneError: that is no device whose memory is known here.
    """
    own = next((parameter.device.type for parameter in model.parameters()), "cpu")
    try:
        asked = torch.device(device or (own if own in _DEVICES else "cpu"))
    except RuntimeError:
        asked = torch.device("meta")
    if asked.type not in _DEVICES:
        raise FxtuneError(f"Memory is not known for device={str(device)!r}", fix="pass 'cpu' or 'cuda'")
    if asked.type == "cuda" and not torch.cuda.is_available():
        raise FxtuneError(
            "Memory on CUDA can only be told where there is a CUDA device",
            found="torch.cuda.is_available() is False; which kernels run, and so what they save, depends on the GPU",
            fix="ask on a machine with such a GPU (it stays as good as empty), or pass device='cpu' for an estimate",
        )
    return asked


def autocast_dtype(autocast: torch.dtype | str | None) -> torch.dtype | None:
    """The dtype of that name.

    Raises:
        FxtuneError: autocast does not go by it.
    """
    found = getattr(torch, autocast, None) if isinstance(autocast, str) else autocast
    if autocast is None:
        return None
    if not isinstance(found, torch.dtype) or found not in (torch.bfloat16, torch.float16):
        raise FxtuneError(f"torch.autocast does not go by autocast={autocast!r}", fix="pass 'bfloat16' or 'float16'")
    return found
