"""The fused attention kernels that give their log-sum-exp, and where each can be used."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

_HALF = (torch.float16, torch.bfloat16)
_aten = torch.ops.aten


class Kernel(ABC):
    """One fused kernel and its backward.

    q is B x H x N x d, k and v are B x Hkv x S x d, a bias is additive with four axes, the log-sum-exp (natural
    logarithm, of scaled and biased logits) is B x H x N in float32 at least.

    Attributes:
        columns: by how many columns the gradient of the log-sum-exp widens `grad`, `v` and `out`.
        alike: whether q and k must be as wide as v.
    """

    columns: int = 1
    alike: bool = True

    @abstractmethod
    def takes(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> bool:
        """Whether the kernel can compute this."""

    @abstractmethod
    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp."""

    @abstractmethod
    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        out: Tensor,
        lse: Tensor,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k, v: ``dS = P ∘ (grad Vᵀ - rowsum(grad ∘ out))`` with ``P = exp(S - lse)``."""


class CpuFlash(Kernel):
    """The CPU's flash attention: every float type, any mask, also beside a causal one, grouped-query heads."""

    def takes(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> bool:
        return (
            q.device.type == "cpu" and q.shape[-1] == v.shape[-1] and q.dtype in (*_HALF, torch.float32, torch.float64)
        )

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
            *map(_packed, (q, k, v)), 0.0, causal, attn_mask=bias, scale=scale
        )
        return out, lse

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        out: Tensor,
        lse: Tensor,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *map(_packed, (grad, q, k, v, out)), lse, 0.0, causal, attn_mask=bias, scale=scale
        )
        return dq, dk, dv


class CudaFlash(Kernel):
    """FlashAttention on CUDA: half precision, no mask but a square causal one."""

    columns = 8  # its heads are a multiple of eight wide

    def takes(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> bool:
        width = q.shape[-1]
        return (
            q.device.type == "cuda"
            and q.dtype in _HALF
            and mask is None
            and (not causal or bool(q.shape[2] == k.shape[2]))
            and width == v.shape[-1]
            and width % 8 == 0
            and width + self.columns <= 256
            and torch.backends.cuda.is_flash_attention_available()
            and torch.backends.cuda.flash_sdp_enabled()  # type: ignore[no-untyped-call]
            and torch.cuda.get_device_capability(q.device) >= (8, 0)
        )

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        out, lse, *_ = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)
        return out, lse

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        out: Tensor,
        lse: Tensor,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Without dropout the kernel reads no random state, and dense tensors have no cumulated lengths.
        state = torch.zeros(2, dtype=torch.uint64, device=q.device)
        unused = torch.zeros((), dtype=torch.uint64, device=q.device)
        dq, dk, dv = _aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, out, lse, None, None, q.shape[2], k.shape[2], 0.0, causal, state, unused, scale=scale
        )
        return dq, dk, dv


class CudaEfficient(Kernel):
    """Memory-efficient attention on CUDA: float32 and half precision, additive masks."""

    columns = 8
    alike = False

    def takes(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> bool:
        return (
            q.device.type == "cuda"
            and q.dtype in (*_HALF, torch.float32)
            and not (causal and mask is not None)
            and (not causal or bool(q.shape[2] == k.shape[2]))
            and q.shape[-1] % 8 == 0
            and v.shape[-1] % 8 == 0
            and torch.backends.cuda.mem_efficient_sdp_enabled()  # type: ignore[no-untyped-call]
            and not torch.are_deterministic_algorithms_enabled()  # its backward is not
        )

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        k, v = _ungrouped(k, q.shape[1]), _ungrouped(v, q.shape[1])
        out, lse, *_ = _aten._scaled_dot_product_efficient_attention(
            q, k, v, _aligned(bias, q, k), True, 0.0, causal, scale=scale
        )
        return out, lse[..., : q.shape[2]]

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        out: Tensor,
        lse: Tensor,
        causal: bool,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        groups, many = k.shape[1], q.shape[1]
        state = torch.zeros((), dtype=torch.int64, device=q.device)
        # The kernel wants rows in multiples of 32; exp(S - inf) is zero in those that are none.
        lse = F.pad(lse, (0, -lse.shape[-1] % 32), value=float("inf"))
        wide = (_ungrouped(k, many), _ungrouped(v, many))
        dq, dk, dv, _ = _aten._scaled_dot_product_efficient_attention_backward(
            grad, q, *wide, _aligned(bias, q, k), out, lse, state, state, 0.0, [True, True, True, False], causal,
            scale=scale,
        )  # fmt: skip
        return dq, _grouped(dk, groups), _grouped(dv, groups)


KERNELS: tuple[Kernel, ...] = (CpuFlash(), CudaFlash(), CudaEfficient())


def kernel_for(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Kernel | None:
    """The first kernel that can compute this attention and give its log-sum-exp, or None."""
    return next((kernel for kernel in KERNELS if kernel.takes(q, k, v, mask, causal)), None)


def _packed(x: Tensor) -> Tensor:
    """Each head's rows side by side in half precision: where the processor has no products of it, the kernel takes
    twice its time over rows that lie apart. In float32 it does not matter."""
    return x.contiguous() if x.dtype in _HALF else x


def _ungrouped(kv: Tensor, heads: int) -> Tensor:
    return kv if kv.shape[1] == heads else kv.repeat_interleave(heads // kv.shape[1], dim=1)


def _grouped(grad: Tensor, groups: int) -> Tensor:
    return grad if grad.shape[1] == groups else torch.unflatten(grad, 1, (groups, -1)).sum(2)


def _aligned(bias: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """The bias of full shape, its rows starting at multiples of sixteen elements."""
    if bias is None:
        return None
    keys = k.shape[2]
    full = bias.expand(q.shape[0], q.shape[1], q.shape[2], keys)
    return F.pad(full, (0, -keys % 16))[..., :keys] if keys % 16 else full.contiguous()
