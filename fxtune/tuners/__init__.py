"""Tuners: small modules that a rule file names, tokens (B, N, D) to what is added to an operation's output, (B, N, D).

Weights are float32 beside a backbone of any dtype: in bfloat16's 8 bits of mantissa small updates would be lost. So a
shipped tuner casts its tokens to the dtype of its weights, and its result back, for the residual stream must keep its
own. A zero stays exactly zero on the way: a tuner that starts at zero leaves the model bit-equal.
"""

from __future__ import annotations

from fxtune.tuners import (  # noqa: F401 - importing registers them
    bitfit,
    convpass,
    lora,
    res_adapter,
    res_prefix,
    res_prompt,
    side_block,
    side_network,
    ssf,
    vpt,
)
from fxtune.tuners.attaching import attached_by
from fxtune.tuners.building import build, drawn, refusal, settings
from fxtune.tuners.bypass import ChannelMap, GatedSplice, Mix, Widened
from fxtune.tuners.parting import can_part, joined, parted
from fxtune.tuners.placement import Placement
from fxtune.tuners.registry import (
    joins_rows,
    maps_widths,
    names,
    narrows,
    offers,
    reads_mask,
    reads_output,
    shipped,
    spans_sites,
    tuner,
)
from fxtune.tuners.resolving import resolve
from fxtune.tuners.rows import RowsInSoftmax, rows_through, seen_by_prompts

__all__ = [
    "ChannelMap",
    "GatedSplice",
    "Mix",
    "Placement",
    "RowsInSoftmax",
    "Widened",
    "attached_by",
    "build",
    "can_part",
    "drawn",
    "joined",
    "joins_rows",
    "maps_widths",
    "names",
    "narrows",
    "offers",
    "parted",
    "reads_mask",
    "reads_output",
    "refusal",
    "resolve",
    "rows_through",
    "seen_by_prompts",
    "settings",
    "shipped",
    "spans_sites",
    "tuner",
]
