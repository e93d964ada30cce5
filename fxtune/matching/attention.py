"""The facts of an attention, read from the names that the attention patterns bind."""

from __future__ import annotations

from typing import Any

from fxtune.matching.matcher import Bound, Solution
from fxtune.matching.site import Attention
from fxtune.view import View

_NEEDED = ("q_proj", "k_proj", "v_proj", "out_proj", "o.q", "o.k", "o.v", "o")


def read_attention(view: View, solution: Solution, output: str = "") -> Attention | None:
    """The attention of a match whose names (its own, or those of one inner pattern) say q, k, v and the projections;
    else None.

    Args:
        view: the view.
        solution: the match.
        output: the name of its result, to tell whether the match is the attention and nothing more.
    """
    prefix = _prefix(solution)
    if prefix is None:
        return None
    names = {n.removeprefix(prefix): b for n, b in solution.names.items() if n.startswith(prefix)}
    q, k, v = (names[f"o.{part}"].value for part in "qkv")
    head_dim = int(view.values[v].shape[-1])
    out_proj = names["out_proj"].node
    heads = _in_width(view, out_proj) // head_dim
    mask = names.get("o.mask")
    core = names["o"].node
    return Attention(
        q=q,
        k=k,
        v=v,
        output=names["o"].value,
        core=core,
        weights=names["o.p"].node if "o.p" in names else None,
        product=names["o.s"].node if "o.s" in names else None,
        whole=prefix == f"{output}.",
        q_proj=_weight(view, names["q_proj"].node),
        k_proj=_weight(view, names["k_proj"].node),
        v_proj=_weight(view, names["v_proj"].node),
        out_proj=_weight(view, out_proj),
        heads=heads,
        kv_heads=_kv_heads(view, names, heads, head_dim),
        head_dim=head_dim,
        mask=mask.value if mask else None,
        causal=bool(view.attrs(core).get("is_causal", False)),
        scale=_scale(view, names, core),
        context=_context(view, names),
        cross=names["q_proj"].node != names["k_proj"].node
        and _source(view, names, "q_proj") != _source(view, names, "k_proj"),
    )


def _prefix(solution: Solution) -> str | None:
    """What stands before the names of the one inner pattern that has them all."""
    prefixes = sorted({name[: -len("out_proj")] for name in solution.names if name.endswith("out_proj")})
    if len(prefixes) != 1 or not all(f"{prefixes[0]}{name}" in solution.names for name in _NEEDED):
        return None
    return prefixes[0]


def _source(view: View, names: dict[str, Bound], projection: str) -> int:
    return view.uses(names[projection].node)[0].source


def _context(view: View, names: dict[str, Bound]) -> int:
    """What the pattern calls c, else what the keys are projected from."""
    return names["c"].value if "c" in names else view.uses(names["k_proj"].node)[0].value


def _weight(view: View, projection: int) -> str:
    return str(view.values[view.uses(projection)[1].source].target)


def _in_width(view: View, projection: int) -> int:
    return int(view.width(view.uses(projection)[0].value) or view.values[view.uses(projection)[0].value].shape[-1])


def _kv_heads(view: View, names: dict[str, Bound], heads: int, head_dim: int) -> int:
    """From the widths of the projections: a fused one holds the queries' channels too."""
    width = int(view.width(names["k_proj"].node) or heads * head_dim)
    nodes = [names[f"{part}_proj"].node for part in "qkv"]
    if nodes[1] == nodes[0]:
        fused = (width // head_dim - heads) // 2
        # One that holds channels of the FFN too does not tell.
        return fused if fused and heads % fused == 0 else int(view.values[names["o.k"].value].shape[1])
    return width // head_dim // (2 if nodes[1] == nodes[2] else 1)


def _scale(view: View, names: dict[str, Bound], core: int) -> float | None:
    explicit: Any = view.attrs(core).get("scale")
    return float(explicit) if isinstance(explicit, int | float) else None
