"""Models that fxtune does not take yet, told by what they are or do rather than by the names of libraries' classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxtune.errors import UnsupportedModelError
from fxtune.wrapped import is_wrapped


def check_supported(model: nn.Module) -> None:
    """Refuses what cannot be captured faithfully.

    Raises:
        UnsupportedModelError: the model is no module, or is compiled, scripted, wrapped for distributed training,
            quantised, or holds adapters of another library.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError("only a torch.nn.Module can be captured", found=f"a {type(model).__name__}")
    for path, module in model.named_modules():
        state, fix = _module_state(module) or (None, None)
        if state is not None:
            raise _refusal(model, path, state, fix)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        state, fix = _tensor_state(tensor) or (None, None)
        if state is not None:
            raise _refusal(model, name, state, fix)


def _refusal(model: nn.Module, where: str, state: str, fix: str | None) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"this {type(model).__name__} cannot be captured as it is",
        found=state,
        where=where or "the model itself",
        fix=fix,
    )


def _module_state(module: nn.Module) -> tuple[str, str] | None:
    if isinstance(module, torch._dynamo.OptimizedModule):
        return "compiled with torch.compile", "pass the model that was compiled, and compile the result"
    if module._compiled_call_impl is not None:
        return "compiled with module.compile()", "pass the model before it is compiled, and compile the result"
    if isinstance(module, torch.jit.ScriptModule):
        return "a TorchScript module", "pass the original model"
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return "wrapped for data-parallel training", "pass the wrapped module, and wrap the result"
    if _is_sharded(module):
        return "sharded (FSDP)", "pass the model before it is sharded, and shard the result"
    if hasattr(module, "peft_config") or ("base_layer" in module._modules and hasattr(module, "active_adapters")):
        return "it holds adapters of another library", "unload or merge them first"
    if (
        any(isinstance(value, torch.ScriptObject) for value in module.__dict__.values())
        or "_packed_params" in module._modules
    ):
        return "quantised (packed weights)", "load the model in floating point"
    return None


def _is_sharded(module: nn.Module) -> bool:
    if not torch.distributed.is_available():
        return False
    from torch.distributed import fsdp

    return isinstance(module, (fsdp.FullyShardedDataParallel, fsdp.FSDPModule))


def _is_distributed(tensor: Tensor) -> bool:
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _tensor_state(tensor: Tensor) -> tuple[str, str] | None:
    if isinstance(tensor, nn.Parameter) and not (tensor.is_floating_point() or tensor.is_complex()):
        return f"a quantised weight ({tensor.dtype})", "load the model in floating point"
    if is_wrapped(tensor) and not _is_distributed(tensor) and not tensor.is_nested:
        return None  # it passes for an ordinary one
    if tensor.is_quantized or type(tensor.data) is not Tensor:
        kind = str(tensor.dtype) if tensor.is_quantized else type(tensor.data).__name__
        return f"a quantised, sharded or wrapped tensor ({kind})", "load the model with ordinary tensors"
    return None
