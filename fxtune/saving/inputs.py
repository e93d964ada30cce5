"""Example inputs as plain data: what kind of tensors they were, for the numbers don't matter to a capture."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class _TensorSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["tensor"] = "tensor"
    dtype: str
    shape: tuple[Annotated[int, Field(ge=0, le=2**24)], ...]


class _PlainSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["plain"] = "plain"
    value: bool | int | float | str | None


class _ListSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["list", "tuple"]
    items: list[_Spec]


class _DictSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["dict"] = "dict"
    items: dict[str, _Spec]


_Spec = Annotated[_TensorSpec | _PlainSpec | _ListSpec | _DictSpec, Field(discriminator="kind")]


class InputsSpec(BaseModel):
    """What a model was called with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    args: list[_Spec]
    kwargs: dict[str, _Spec]


def described(args: tuple[Any, ...], kwargs: dict[str, Any]) -> InputsSpec | None:
    """The inputs as plain data; None if there is something else among them than tensors, numbers, texts and
    collections of these."""
    try:
        return InputsSpec(args=[_described(v) for v in args], kwargs={k: _described(v) for k, v in kwargs.items()})
    except TypeError:
        return None


def drawn(spec: InputsSpec) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs of these kinds: floating ones are random, whole numbers 0, truth values true.

    Raises:
        ValueError: a dtype does not exist.
    """
    return tuple(_drawn(value) for value in spec.args), {name: _drawn(value) for name, value in spec.kwargs.items()}


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _TensorSpec(dtype=str(value.dtype).removeprefix("torch."), shape=tuple(value.shape))
    if value is None or type(value) in (bool, int, float, str):
        return _PlainSpec(value=value)
    if type(value) in (list, tuple):
        return _ListSpec(kind="list" if type(value) is list else "tuple", items=[_described(item) for item in value])
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return _DictSpec(items={key: _described(item) for key, item in value.items()})
    raise TypeError(type(value).__name__)


def _drawn(spec: _Spec) -> Any:
    if isinstance(spec, _PlainSpec):
        return spec.value
    if isinstance(spec, _DictSpec):
        return {key: _drawn(item) for key, item in spec.items.items()}
    if isinstance(spec, _ListSpec):
        items = [_drawn(item) for item in spec.items]
        return items if spec.kind == "list" else tuple(items)
    dtype = getattr(torch, spec.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{spec.dtype!r} is no dtype")
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(spec.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return torch.ones(spec.shape, dtype=dtype) if dtype == torch.bool else torch.zeros(spec.shape, dtype=dtype)
