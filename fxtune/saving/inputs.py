"""Example inputs as plain data: what kind of tensors they were, for the numbers don't matter to a capture."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor

_MOST_NUMBERS = 2**28
"""In a tensor: an example is small."""


def _small(shape: tuple[int, ...]) -> tuple[int, ...]:
    if math.prod(shape) > _MOST_NUMBERS:
        raise ValueError(f"expected example inputs of at most {_MOST_NUMBERS} numbers, not of shape {shape}")
    return shape


def _known(name: str) -> str:
    if not isinstance(getattr(torch, name, None), torch.dtype):
        raise ValueError(f"expected a dtype such as float32, not {name!r}")
    return name


DtypeName = Annotated[str, AfterValidator(_known)]


class _TensorSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["tensor"]
    dtype: DtypeName
    shape: Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(_small)]


class _PlainSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["plain"]
    value: bool | int | float | str | None


class _ListSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["list", "tuple"]
    items: list[_Spec]


class _DictSpec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["dict"]
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
    """Inputs of these kinds: floating ones are random, whole numbers 0, truth values true."""
    return tuple(_drawn(value) for value in spec.args), {name: _drawn(value) for name, value in spec.kwargs.items()}


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _TensorSpec(kind="tensor", dtype=str(value.dtype).removeprefix("torch."), shape=tuple(value.shape))
    if value is None or type(value) in (bool, int, float, str):
        return _PlainSpec(kind="plain", value=value)
    if type(value) in (list, tuple):
        return _ListSpec(kind="list" if type(value) is list else "tuple", items=[_described(item) for item in value])
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return _DictSpec(kind="dict", items={key: _described(item) for key, item in value.items()})
    raise TypeError(type(value).__name__)


def _drawn(spec: _Spec) -> Any:
    if isinstance(spec, _PlainSpec):
        return spec.value
    if isinstance(spec, _DictSpec):
        return {key: _drawn(item) for key, item in spec.items.items()}
    if isinstance(spec, _ListSpec):
        items = [_drawn(item) for item in spec.items]
        return items if spec.kind == "list" else tuple(items)
    dtype: torch.dtype = getattr(torch, spec.dtype)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(spec.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return torch.ones(spec.shape, dtype=dtype) if dtype == torch.bool else torch.zeros(spec.shape, dtype=dtype)
