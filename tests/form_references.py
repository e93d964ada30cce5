"""Prefix, prompt and VPT-deep written by hand on the eager models of the libraries, without fxtune."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KeysAndValues = tuple[Tensor, Tensor]
"""Of one attention's further rows, kv-heads x P x head_dim each."""


def fused(model: nn.Module) -> nn.Module:
    """The model with every attention computed by `scaled_dot_product_attention`, where `more_keys` finds it."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = True
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("sdpa")
        model.config._attn_implementation = "sdpa"  # what some models read in every call
    return model


# ---- more keys and values in every attention -------------------------------------------------------------------------


@contextmanager
def more_keys(rows: Sequence[KeysAndValues]) -> Iterator[None]:
    """Every attention gets the next of `rows` among its keys and values, seen by every query and without bias.

    A model that calls an attention again gets the same rows again.
    """
    again = itertools.cycle(rows)

    def attention(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        more_k, more_v = next(again)
        keys, values = (_joined(own, more, q.shape[1]) for own, more in ((k, more_k), (v, more_v)))
        logits = torch.einsum("bhnd,bhsd->bhns", q, keys) * (q.shape[-1] ** -0.5 if scale is None else scale)
        own = k.shape[2]
        if is_causal:
            logits[..., :own] += torch.full((q.shape[2], own), float("-inf"), dtype=q.dtype).triu(1)
        if attn_mask is not None and attn_mask.dtype is torch.bool:
            logits[..., :own] = logits[..., :own].masked_fill(~attn_mask, float("-inf"))
        elif attn_mask is not None:
            logits[..., :own] += attn_mask
        blind = (logits == float("-inf")).all(-1, keepdim=True)  # without further rows: the operator gives zeros
        return logits.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0) @ values

    with mock.patch.object(F, "scaled_dot_product_attention", attention):
        yield


def _joined(own: Tensor, more: Tensor, heads: int) -> Tensor:
    more = more.repeat_interleave(own.shape[1] // more.shape[0], 0).expand(own.shape[0], -1, -1, -1)
    joined = torch.cat([own, more], 2)
    return joined.repeat_interleave(heads // joined.shape[1], 1)


def by_heads(rows: Tensor, heads: int) -> Tensor:
    """P x (heads · d) as heads x P x d."""
    return rows.view(rows.shape[0], heads, rows.shape[1] // heads).transpose(0, 1)


def projected(attention: nn.Module, prompts: Tensor, heads: int) -> KeysAndValues:
    """Keys and values that an attention makes of prompts: its own projections and its k-norm, unrotated."""
    keys, values = _keys_and_values(attention, prompts)
    keys, values = by_heads(keys, heads), by_heads(values, heads)
    return getattr(attention, "k_norm", nn.Identity())(keys), values


def _keys_and_values(attention: Any, prompts: Tensor) -> KeysAndValues:
    if hasattr(attention, "in_proj_weight"):
        return _last_two(F.linear(prompts, attention.in_proj_weight, attention.in_proj_bias))
    if hasattr(attention, "c_attn"):
        return _last_two(attention.c_attn(prompts[None])[0])
    if hasattr(attention, "query_key_value"):  # the queries' heads, and one of keys and one of values
        fused, d = attention.query_key_value(prompts), attention.head_dim
        return fused[:, -2 * d : -d], fused[:, -d:]
    if getattr(attention, "qkv", None) is not None:
        bias = attention.qkv.bias
        if getattr(attention, "q_bias", None) is not None:
            bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        return _last_two(F.linear(prompts, attention.qkv.weight, bias))
    for key, value in (("key", "value"), ("k_lin", "v_lin"), ("k_proj", "v_proj"), ("to_k", "to_v"), ("k", "v")):
        if hasattr(attention, key):
            return getattr(attention, key)(prompts), getattr(attention, value)(prompts)
    raise AssertionError(f"the reference does not know the projections of a {type(attention).__name__}")


def _last_two(fused: Tensor) -> KeysAndValues:
    _, keys, values = fused.chunk(3, -1)
    return keys, values


# ---- rows in the sequence of every block -----------------------------------------------------------------------------


@contextmanager
def rows_in_blocks(model: nn.Module, prompts: dict[str, Tensor], *, stay: bool = False) -> Iterator[None]:
    """Rows behind the tokens of what each of the modules `prompts` gets, cut off behind it.

    Where they `stay`, the first one's go on to the last, and are cut off there.

    Rows are seen by every token. In a causal block a mask is written out for that where the model gives none.
    """
    handles, patches = [], contextlib.ExitStack()
    for path, rows in prompts.items():
        block = model.get_submodule(path)
        for module in block.modules():
            if hasattr(module, "compute_bias"):
                patches.enter_context(_relative_bias_for_tokens_alone(module, rows.shape[0]))

        first, last = (not stay or path == list(prompts)[end] for end in (0, -1))

        def join(block: nn.Module, args: Any, kwargs: Any, rows: Tensor = rows, joins: bool = first) -> Any:
            return (), _with_rows(block, _named(block, args, kwargs), rows, joins)

        def cut(_: nn.Module, args: Any, output: Any, many: int = rows.shape[0]) -> Any:
            if isinstance(output, tuple):
                return (output[0][:, : output[0].shape[1] - many], *output[1:])
            return output[:, : output.shape[1] - many]

        handles.append(block.register_forward_pre_hook(join, with_kwargs=True))
        if last:
            handles.append(block.register_forward_hook(cut))
    try:
        with patches:
            yield
    finally:
        for handle in handles:
            handle.remove()


def _relative_bias_for_tokens_alone(attention: Any, many: int) -> Any:
    """Lets an attention that computes a bias of N x N tokens give one of N + P, zero for the rows."""
    of_tokens = attention.compute_bias

    def compute_bias(queries: int, keys: int, **more: Any) -> Tensor:
        return F.pad(of_tokens(queries - many, keys - many, **more), (0, many, 0, many))

    return mock.patch.object(attention, "compute_bias", compute_bias)


def _named(block: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """A call's arguments by name."""
    bound = inspect.signature(block.forward).bind(*args, **kwargs).arguments
    return {**{name: value for name, value in bound.items() if name != "kwargs"}, **bound.get("kwargs", {})}


def _with_rows(block: nn.Module, given: dict[str, Any], rows: Tensor, joins: bool) -> dict[str, Any]:
    many, (sequence, hidden) = rows.shape[0], next(iter(given.items()))
    tokens = hidden.shape[1] - (0 if joins else many)
    causal = any(getattr(module, "is_causal", False) for module in block.modules())
    if causal and given.get("attention_mask") is None:
        seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
        given = {**given, "attention_mask": seen.expand(hidden.shape[0], 1, -1, -1)}

    def extended(name: str, value: Any) -> Any:
        if name == sequence:
            return torch.cat([value, rows.expand(value.shape[0], -1, -1)], 1) if joins else value
        if name == "rope" and isinstance(value, Tensor):  # sines, then cosines
            sines, cosines = value.chunk(2, -1)
            return torch.cat([_more(sines, many, 0.0), _more(cosines, many, 1.0)], -1)
        if name == "position_embeddings":
            cosines, sines = value
            return _more(cosines, many, 1.0), _more(sines, many, 0.0)
        if name.endswith("position_bias"):  # another block's, which has the rows
            return value
        if name == "encoder_attention_mask" and isinstance(value, Tensor):  # of the context: it has padding, no rows
            return value[:, :, :1].expand(-1, -1, tokens + many, -1)
        if isinstance(value, Tensor) and value.dim() == 4:  # a mask: the rows see and are seen
            return F.pad(value, (0, many, 0, many), value=value.dtype is torch.bool)
        return value

    return {name: extended(name, value) for name, value in given.items()}


def _more(table: Tensor, many: int, value: float) -> Tensor:
    """Sines or cosines with those of rows that are not rotated."""
    return F.pad(table, (0, 0, 0, many), value=value)


def block_of(path: str) -> str:
    """The module path of the block that a module lies in: up to the last number."""
    found = re.match(r"(.*\d+)(\.|$)", path)
    assert found is not None
    return found[1]
