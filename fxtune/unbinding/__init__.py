"""The unbinding room: attention with a prefix, in its original form and in its unbound one (Res-Tuning, Eq. 2 to 5)."""

from fxtune.unbinding.attention import attention_with_lse
from fxtune.unbinding.mixing import mix
from fxtune.unbinding.original import prefix_attention, prompt_attention
from fxtune.unbinding.unbound import unbound_attention

__all__ = ["attention_with_lse", "mix", "prefix_attention", "prompt_attention", "unbound_attention"]
